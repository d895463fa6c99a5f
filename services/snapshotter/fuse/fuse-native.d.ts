/** The part of `fuse-native` 2.2 that is used; it brings no types. */
declare module 'fuse-native' {
  type Done<T extends unknown[] = []> = (errno: number, ...results: T) => void;

  export interface FuseStat {
    readonly mode: number;
    readonly size: number;
    readonly nlink?: number;
    readonly ino?: number;
    readonly uid: number;
    readonly gid: number;
    readonly mtime: Date;
    readonly atime: Date;
    readonly ctime: Date;
  }

  export interface FuseOperations {
    readdir?(path: string, done: Done<[names?: readonly string[]]>): void;
    getattr?(path: string, done: Done<[stat?: FuseStat]>): void;
    readlink?(path: string, done: Done<[target?: string]>): void;
    open?(path: string, flags: number, done: Done<[fd?: number]>): void;
    create?(path: string, mode: number, done: Done<[fd?: number]>): void;
    read?(
      path: string,
      fd: number,
      buffer: Buffer,
      length: number,
      position: number,
      done: (bytesOrErrno: number) => void,
    ): void;
    release?(path: string, fd: number, done: Done): void;
    rmdir?(path: string, done: Done): void;
    mkdir?(path: string, mode: number, done: Done): void;
    listxattr?(path: string, done: Done<[names?: readonly string[]]>): void;
    getxattr?(path: string, name: string, position: number, done: Done<[value?: Buffer | null]>): void;
    statfs?(path: string, done: Done<[stats?: Readonly<Record<string, number>>]>): void;
  }

  export interface FuseOptions {
    readonly timeout?: number | false;
    readonly allowOther?: boolean;
    readonly defaultPermissions?: boolean;
    readonly fsname?: string;
    readonly subtype?: string;
    readonly maxRead?: number;
    readonly kernelCache?: boolean;
    readonly autoCache?: boolean;
    readonly entryTimeout?: number;
    readonly attrTimeout?: number;
  }

  export default class Fuse {
    constructor(directory: string, operations: FuseOperations, options?: FuseOptions);
    static unmount(directory: string, done: (error: Error | null) => void): void;
    mount(done: (error: Error | null | undefined) => void): void;
    unmount(done: (error: Error | null | undefined) => void): void;
  }
}
