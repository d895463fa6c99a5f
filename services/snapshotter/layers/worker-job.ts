import type { Digest } from '#shared/digest/digest.ts';
import type { ImageRange } from './early-reads.ts';
import type { LayerRecord } from './layer-record.ts';
import type { SpanBytes } from './span-source.ts';

/** The layer's span map, shared between threads: parsed once in each, held once in the process. */
export interface SharedMap {
  readonly layer: Digest;
  readonly bytes: SharedArrayBuffer;
}

/** What the main thread asks of a worker. File descriptors are the process's, so a number is enough. */
export type WorkerJob =
  | {
      readonly kind: 'store';
      readonly map: SharedMap;
      readonly fd: number;
      readonly span: number;
      readonly form: SpanBytes['form'];
      readonly bytes: Uint8Array<ArrayBuffer>;
      /** What readers wait for: made readable first where the span's coding allows that, and told by `early`. */
      wanted: readonly ImageRange[];
    }
  | { readonly kind: 'verify'; readonly map: SharedMap; readonly fd: number; readonly span: number }
  | {
      readonly kind: 'check';
      readonly map: SharedMap;
      readonly mapDigest: Digest;
      readonly fd: number;
      readonly metadataSize: number;
      readonly metadataDigest: Digest;
    }
  | {
      readonly kind: 'build-index';
      readonly layer: Digest;
      readonly folder: string;
      readonly index: Uint8Array;
    }
  | {
      /** Whether an index lays the layer out as it is here. */
      readonly kind: 'compare-index';
      readonly layer: Digest;
      readonly index: Uint8Array;
      readonly metadataDigest: Digest;
      readonly mapDigest: Digest;
    }
  | {
      readonly kind: 'build-tail';
      readonly layer: Digest;
      readonly folder: string;
      readonly blobSize: number;
      readonly mediaType: string | undefined;
      readonly annotations: Readonly<Record<string, string>>;
      /** The last bytes of the blob. */
      readonly tail: Uint8Array;
    }
  | {
      readonly kind: 'build-toc';
      readonly layer: Digest;
      readonly folder: string;
      readonly blobSize: number;
      readonly annotations: Readonly<Record<string, string>>;
      /** A TOC that was found outside of the blob, and where the blob's files end. */
      readonly toc: Uint8Array;
      readonly dataEnd: number;
    }
  | {
      readonly kind: 'build-ztoc';
      readonly layer: Digest;
      readonly folder: string;
      readonly blobSize: number;
      /** See FoundZtoc. */
      readonly ztoc: Uint8Array;
      readonly head: Uint8Array;
    }
  | { readonly kind: 'end' };

/** Of a layer that was built: its record but for what only the store knows. */
export type BuiltLayer = Omit<LayerRecord, 'requests' | 'version'>;

export interface WorkerResults {
  store: 'stored' | 'mismatch';
  verify: boolean;
  check: boolean;
  'build-index': BuiltLayer;
  /** The digest of the layer's tar, where the index knows it. */
  'compare-index': { readonly same: boolean; readonly diffId: Digest | undefined };
  'build-tail':
    | { readonly kind: 'built'; readonly layer: BuiltLayer; readonly spansStored: number }
    /** The TOC begins at this offset of the blob: ask again with the tail from there. */
    | { readonly kind: 'more'; readonly from: number }
    /** The TOC lies outside of the blob: ask with `build-toc` once it was found. */
    | { readonly kind: 'external'; readonly dataEnd: number }
    /** The blob is of no format with a TOC. */
    | { readonly kind: 'no-toc' };
  /** undefined where the TOC is not the one that the layer's annotation promises, or has no digests. */
  'build-toc': BuiltLayer | undefined;
  'build-ztoc': BuiltLayer;
  end: undefined;
}

export type WorkerAnswer =
  /** Said once, before anything else: the thread's own number, by which it is made to wait for others. */
  | { readonly thread: number }
  /** What was wanted of a `store` job is in the file, verified; its result follows. */
  | { readonly early: true }
  | { readonly result: unknown }
  | { readonly error: { readonly code: string; readonly message: string } };
