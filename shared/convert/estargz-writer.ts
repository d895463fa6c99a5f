// Begun; the rest follows.
export {};
