/** Whether `host` (`host[:port]`, as a URL has it) is this machine by name or address. */
export function isLoopback(host: string): boolean {
  const name = nameOf(host);
  return (
    name === 'localhost' ||
    name.endsWith('.localhost') ||
    name === '[::1]' ||
    name === '[::]' ||
    ipv4Of(name)?.startsWith('127.') === true ||
    ipv4Of(name)?.startsWith('0.') === true
  );
}

/** Whether `host` is an address of the link alone: there clouds answer with the credentials of the machine. */
export function isLinkLocal(host: string): boolean {
  const name = nameOf(host);
  return ipv4Of(name)?.startsWith('169.254.') === true || /^\[fe[89ab]/.test(name) || name === '[fd00:ec2::254]';
}

/** Without port, and without the dot of a name that is written in full. */
function nameOf(host: string): string {
  return host.replace(/:\d+$/, '').replace(/\.$/, '').toLowerCase();
}

/** Also of one that is written within IPv6 (`[::ffff:7f00:1]`: what a URL makes of `[::ffff:127.0.0.1]`). */
function ipv4Of(name: string): string | undefined {
  if (/^\d{1,3}(?:\.\d{1,3}){3}$/.test(name)) return name;
  const [, high, low] = /^\[::ffff:([0-9a-f]{1,4}):([0-9a-f]{1,4})\]$/.exec(name) ?? [];
  if (high === undefined || low === undefined) return undefined;
  return [high, low].flatMap((part) => [Number.parseInt(part, 16) >> 8, Number.parseInt(part, 16) & 255]).join('.');
}
