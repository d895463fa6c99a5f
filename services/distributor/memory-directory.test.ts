import { directoryConformance } from './directory-conformance.ts';
import { MemoryDirectory } from './memory-directory.ts';

directoryConformance('in memory', () => Promise.resolve(new MemoryDirectory()));
