/** Files of a layer's folder, `<root>/<hex>/`. */
export const LAYER_FILES = {
  /** The encoded LayerIndex: what the others are made from, and what is shared with other nodes. */
  index: 'index',
  /** The encoded SpanMap. */
  map: 'map',
  /** The layer image: metadata whole, data as far as it is resident, holes elsewhere. */
  image: 'image',
  /** Bitmap of the spans in `image` that were verified. Written after the data. */
  residency: 'residency',
  /** Bitmap of spans that were resident before an unclean boot: maybe there, to be verified. */
  suspect: 'suspect',
  /** LayerRecord. Written last: a folder without it is none. */
  record: 'layer.json',
} as const;

/** Name under which the FUSE session shows the image of the layer of these 64 hex digits. */
export function imageNameOf(hex: string): string {
  return `${hex}.img`;
}

/** A pure function of the name; 60 bits of a digest do not collide, and 0 and 1 are not reached. */
export function imageInodeOf(hex: string): bigint {
  return (BigInt(`0x${hex.slice(0, 15)}`) << 2n) | 2n;
}
