import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { parseToml, TomlError } from './toml-subset.ts';

test('a hosts.toml as people write it is read', () => {
  const parsed = parseToml(`# mirrors
server = "https://registry-1.docker.io" # the real one

[host."https://mirror.example:5000/v2/proxy"]
  capabilities = ["pull", 'resolve',]
  skip_verify = true
  override_path = false
  client = [["a.crt", "a.key"],
            ["b.crt", "b.key"]]
  [host."https://mirror.example:5000/v2/proxy".header]
    x-custom = ["a", "b\\t\\u0041"]
[limits]
a.b = -12
`);
  assert.deepEqual(JSON.parse(JSON.stringify(parsed)), {
    server: 'https://registry-1.docker.io',
    host: {
      'https://mirror.example:5000/v2/proxy': {
        capabilities: ['pull', 'resolve'],
        skip_verify: true,
        override_path: false,
        client: [
          ['a.crt', 'a.key'],
          ['b.crt', 'b.key'],
        ],
        header: { 'x-custom': ['a', 'b\tA'] },
      },
    },
    limits: { a: { b: -12 } },
  });
});

test('errors name the line', () => {
  for (const text of [
    'a = ',
    'a',
    'x = 1\na = "open',
    '[t',
    '[[t]]',
    'a = 1 b = 2',
    'a = """x"""',
    'a = 1\na = 2',
    'a = 1\na.b = 2',
  ]) {
    assert.throws(() => parseToml(text), { name: 'TomlError', message: /line \d/ }, text);
  }
});

test('any text is read or refused, never more', () => {
  fc.assert(
    fc.property(fc.oneof(fc.string(), fc.stringMatching(/^[a-b[\]="'.,\n #\\]{0,40}$/)), (text) => {
      try {
        parseToml(text);
      } catch (error) {
        assert.ok(error instanceof TomlError, String(error));
      }
    }),
    { numRuns: 1000 },
  );
});
