/**
 * The seam between the FUSE session and what it serves: one flat directory of layer images.
 * Two transports serve it (our own on /dev/fuse, and fuse-native); one conformance suite runs on both.
 */
export interface LayerFile {
  readonly name: string;
  /**
   * Inode number, also the FUSE node id: 64 bits, never 0 or 1, a pure function of the name, so that an agent that
   * has just taken over knows the files that the kernel already has open.
   */
  readonly inode: bigint;
  readonly sizeBytes: number;
}

export interface LayerFiles {
  list(): readonly LayerFile[];
  byName(name: string): LayerFile | undefined;
  byInode(inode: bigint): LayerFile | undefined;
  /**
   * Exactly `length` bytes, or fewer only at the end of the file. Waits for bytes that are not here yet.
   * Aborting `signal` ends the wait of this reader alone. Rejects with an error whose `errno` is EIO when the bytes cannot
   * be had or not be verified.
   *
   * `into`, where given, has room for `length` bytes: the bytes may be put there and a view of it be returned, which saves a
   * buffer per read. After a rejection it may still be written to.
   */
  read(
    file: LayerFile,
    offset: number,
    length: number,
    signal: AbortSignal,
    into?: Uint8Array<ArrayBuffer>,
  ): Promise<Uint8Array>;
}
