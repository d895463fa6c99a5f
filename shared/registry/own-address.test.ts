import assert from 'node:assert/strict';
import { suite, test } from 'node:test';
import { isLinkLocal, isLoopback } from './own-address.ts';

/** As a URL writes it, which is what is asked about. */
const hostOf = (text: string): string => new URL(`http://${text}/`).host;

suite('addresses of the machine itself', () => {
  test('loopback is known in every way to write it', () => {
    const own = ['localhost', 'LOCALHOST.:5000', 'a.localhost', '127.0.0.1:80', '127.9.8.7', '2130706433', '0x7f.1'];
    const odd = [
      '0.0.0.0',
      '0',
      '[::1]:8',
      '[::]',
      '[::ffff:127.0.0.1]',
      '[0:0:0:0:0:ffff:7f00:1]',
      '[::ffff:0.0.0.0]',
    ];
    for (const text of [...own, ...odd]) assert.equal(isLoopback(hostOf(text)), true, text);
    const others = [
      '10.0.0.1',
      '128.0.0.1',
      'localhost.example',
      '127.0.0.1.example',
      '[2001:db8::1]',
      '[::ffff:8.8.8.8]',
    ];
    for (const text of others) assert.equal(isLoopback(hostOf(text)), false, text);
  });

  test('link-local is known in every way to write it, and the address of metadata in IPv6', () => {
    const link = [
      '169.254.169.254',
      '0xa9fea9fe',
      '[fe80::1]:80',
      '[febf::1]',
      '[::ffff:169.254.169.254]',
      '[fd00:ec2::254]',
    ];
    for (const text of link) assert.equal(isLinkLocal(hostOf(text)), true, text);
    for (const text of ['169.253.0.1', '[fec0::1]', 'fe80.example'])
      assert.equal(isLinkLocal(hostOf(text)), false, text);
  });
});
