import assert from 'node:assert/strict';
import { test } from 'node:test';
import { AllowedRepositories } from './allowed-repositories.ts';

test('a pattern allows its own host, repository or folder and nothing that only begins like it', () => {
  const allowed = new AllowedRepositories(['r.example:5000', 'docker.io/library/*', 'ghcr.io/team/app']);
  for (const yes of ['r.example:5000/a/b', 'docker.io/library/python', 'ghcr.io/team/app'])
    assert.ok(allowed.allows(yes), yes);
  for (const no of [
    'r.example:50001/a',
    'r.example/a',
    'docker.io/libraryx/a',
    'docker.io/library',
    'ghcr.io/team/app2',
    'ghcr.io/team/app/x',
  ]) {
    assert.ok(!allowed.allows(no), no);
  }
  assert.ok(new AllowedRepositories(['*']).allows('any.example/x'));
  assert.ok(!new AllowedRepositories([]).allows('any.example/x'));
});
