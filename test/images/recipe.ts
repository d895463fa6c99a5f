/** How a test image is made and how one sees that its container is ready; modelled on HelloBench. */
export interface Recipe {
  readonly name: string;
  /** Debian packages of the second layer, on top of the minimal base. */
  readonly packages: readonly string[];
  /** Shell commands run in the image after the packages are there (second layer). */
  readonly setup?: string;
  /** Files of the third layer: path without leading `/` -> content. */
  readonly files: Readonly<Record<string, string>>;
  readonly command: readonly string[];
  readonly env?: readonly string[];
  readonly ready: Readiness;
}

export type Readiness =
  /** Prints a line that contains `output` and exits 0. */
  | { readonly kind: 'exit'; readonly output: string }
  /** Writes a line that contains `line` to stdout or stderr; then it is killed. */
  | { readonly kind: 'log'; readonly line: string }
  /** Answers `GET /` on 127.0.0.1 (the container runs in the host's network); then it is killed. */
  | { readonly kind: 'http'; readonly port: number };

const HELLO = { kind: 'exit', output: 'hello' } as const;

export const RECIPES: readonly Recipe[] = [
  {
    name: 'python',
    // With the compiler and headers that the usual python images carry: most of an image is never read by a start.
    packages: ['python3', 'python3-dev', 'python3-pip', 'python3-numpy', 'python3-flask', 'build-essential'],
    files: {
      'app/ready.py':
        'import flask, numpy\napp = flask.Flask("ready")\nprint("hello", int(numpy.arange(10).sum()), len(app.url_map._rules))\n',
    },
    command: ['python3', '/app/ready.py'],
    ready: HELLO,
  },
  {
    name: 'node',
    packages: ['nodejs'],
    files: {
      'app/server.js':
        "require('node:http').createServer((request, response) => response.end('hello\\n')).listen(18081, '127.0.0.1');\n",
    },
    command: ['node', '/app/server.js'],
    ready: { kind: 'http', port: 18081 },
  },
  {
    name: 'nginx',
    packages: ['nginx-light'],
    files: {
      'app/nginx.conf':
        'daemon off;\nerror_log stderr;\npid /tmp/nginx.pid;\nevents {}\nhttp { access_log off; server { listen 127.0.0.1:18082; root /app/www; } }\n',
      'app/www/index.html': 'hello\n',
    },
    command: ['nginx', '-c', '/app/nginx.conf'],
    ready: { kind: 'http', port: 18082 },
  },
  {
    name: 'redis',
    packages: ['redis-server'],
    files: { 'app/redis.conf': 'port 0\nunixsocket /tmp/redis.sock\nsave ""\n' },
    command: ['redis-server', '/app/redis.conf'],
    ready: { kind: 'log', line: 'ready to accept connections' },
  },
  {
    name: 'postgres',
    packages: ['postgresql-15'],
    files: {
      'app/ready.sh': [
        '#!/bin/sh',
        'set -e',
        'mkdir -p /tmp/db && chown postgres /tmp/db',
        'as="setpriv --reuid=postgres --regid=postgres --clear-groups"',
        'bin=/usr/lib/postgresql/15/bin',
        '$as $bin/initdb -D /tmp/db --no-sync >/dev/null',
        'exec $as $bin/postgres -D /tmp/db -c listen_addresses= -c unix_socket_directories=/tmp',
        '',
      ].join('\n'),
    },
    command: ['sh', '/app/ready.sh'],
    ready: { kind: 'log', line: 'database system is ready to accept connections' },
  },
  {
    name: 'gcc',
    packages: ['gcc', 'libc6-dev'],
    files: {
      'app/hello.c': '#include <stdio.h>\nint main(void) { puts("hello"); return 0; }\n',
      'app/ready.sh': 'gcc -o /tmp/hello /app/hello.c && exec /tmp/hello\n',
    },
    command: ['sh', '/app/ready.sh'],
    ready: HELLO,
  },
  {
    name: 'perl',
    packages: ['perl'],
    files: {
      'app/ready.pl': 'use JSON::PP; use List::Util qw(sum); print encode_json(["hello", sum(1 .. 4)]), "\\n";\n',
    },
    command: ['perl', '/app/ready.pl'],
    ready: HELLO,
  },
  {
    name: 'ruby',
    packages: ['ruby'],
    files: { 'app/ready.rb': 'require "json"\nrequire "set"\nputs JSON.generate(["hello", Set.new([1, 2]).size])\n' },
    command: ['ruby', '/app/ready.rb'],
    ready: HELLO,
  },
  {
    name: 'php',
    packages: ['php-cli'],
    files: { 'app/ready.php': '<?php echo json_encode(["hello", array_sum([1, 2, 3])]), "\\n";\n' },
    command: ['php', '/app/ready.php'],
    ready: HELLO,
  },
  {
    name: 'openjdk',
    packages: ['openjdk-17-jdk-headless'],
    files: {
      'app/Hello.java':
        'public class Hello { public static void main(String[] args) { System.out.println("hello " + args.length); } }\n',
    },
    command: ['java', '/app/Hello.java'],
    ready: HELLO,
  },
];

export function recipeOf(name: string): Recipe {
  const recipe = RECIPES.find((each) => each.name === name);
  if (recipe === undefined) {
    throw new Error(`Cannot build image ${name}: there are ${RECIPES.map((each) => each.name).join(', ')}`);
  }
  return recipe;
}
