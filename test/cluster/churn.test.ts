import { HINDRANCES } from './fault-scenarios.ts';
import { testScenarios } from './scenario-test.ts';

testScenarios(
  'starts end with the right bytes when links, disks and peers are bad and nodes come and go, and the registry is not read more often than that explains',
  HINDRANCES,
  1,
);
