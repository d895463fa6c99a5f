import type { Digest } from '#shared/digest/digest.ts';

/** What containerd's labels say of a layer to be provided. */
export interface LayerRequest {
  /** `host/repository[:tag][@digest]` of the image as the client named it. */
  readonly imageReference: string;
  readonly layer: Digest;
  /** From the manifest where known, else undefined (then one HEAD is needed). */
  readonly sizeBytes: number | undefined;
  readonly mediaType: string | undefined;
  /** The layer descriptor's annotations that were inherited as labels (TOC digest and the like). */
  readonly annotations: Readonly<Record<string, string>>;
  /** Digest of the manifest, where the labels name it. */
  readonly manifest: Digest | undefined;
}

/** Why a layer is not provided lazily; it is then pulled and unpacked by containerd as usual. */
export class NotLazyError extends Error {
  override readonly name = 'NotLazyError';
  readonly code: 'no-index' | 'refused' | 'unreachable' | 'disk-full' | 'unsupported';
  constructor(code: NotLazyError['code'], message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

/** A layer that is mounted. */
export interface ProvidedLayer {
  /** Where its EROFS is mounted. Short: overlayfs takes all its layers' paths in one page. */
  readonly path: string;
  /**
   * Directories (cleaned, relative paths; the root left out) that have no entry of their own in the layer. Under overlayfs
   * they would show made-up attributes in place of those of the layers below.
   */
  readonly impliedDirectories?: readonly Buffer[];
  /** Digest of the layer's tar; undefined where nobody has seen all of it (a layer with a table of contents). */
  readonly diffId?: Digest | undefined;
  /** Owner of the layer's root where it has an entry for it. */
  readonly rootOwner?: { readonly uid: number; readonly gid: number } | undefined;
}

/** Seam of the snapshots service, implemented by the layer store. */
export interface LayerProvider {
  /**
   * Makes the layer's image ready and mounted (EROFS, read-only). Idempotent; concurrent calls
   * for a layer share the work. @throws NotLazyError
   */
  provide(request: LayerRequest, signal: AbortSignal): Promise<ProvidedLayer>;
  /** Path of the mounted layer, mounting it again when it is not (after a reboot). @throws NotLazyError */
  mountOf(layer: Digest, signal: AbortSignal): Promise<string>;
  /** Digest of the layer's tar; undefined where nobody has seen all of it. */
  tarOf(layer: Digest): Digest | undefined;
  /** Asks those who may have read a layer whole for what `tarOf` does not know. The layer is here, as `request` had asked for it. */
  learnTar(request: LayerRequest, signal: AbortSignal): Promise<void>;
  /** Bytes and inodes on this node's disk. */
  usage(layer: Digest): { readonly sizeBytes: number; readonly inodes: number };
  /** No snapshot needs the layer any more: unmount; its cache stays until the quota wants the space. Idempotent. */
  release(layer: Digest, signal: AbortSignal): Promise<void>;
}
