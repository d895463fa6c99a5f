import type { Extent } from '#shared/layer/layer-index.ts';

/** Finds in the stored bytes of an entry, as they pass, those that its extents cover: what a tar says of sparse files lies among them. */
export class ExtentCover {
  #extents: readonly Extent[] = [];
  #next = 0;

  /** Of an entry, whose bytes follow. */
  begin(extents: readonly Extent[]): void {
    this.#extents = extents;
    this.#next = 0;
  }

  /** `covered` gets parts of `bytes`, which lie at `streamOffset` of the tar, each within one extent, and where in the file they are. */
  take(bytes: Uint8Array, streamOffset: number, covered: (part: Uint8Array, fileOffset: number) => void): void {
    for (let at = 0; at < bytes.length; ) {
      const extent = this.#extents[this.#next];
      if (extent === undefined) return;
      const inExtent = streamOffset + at - extent.streamOffset;
      if (inExtent < 0) at = Math.min(bytes.length, at - inExtent);
      else if (inExtent >= extent.length) this.#next += 1;
      else {
        const end = Math.min(bytes.length, at + extent.length - inExtent);
        covered(bytes.subarray(at, end), extent.fileOffset + inExtent);
        at = end;
      }
    }
  }
}
