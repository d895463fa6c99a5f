import { KILLS } from './fault-scenarios.ts';
import { testScenarios } from './scenario-test.ts';

testScenarios(
  'starts end with the right bytes when nodes, Redis, NATS and distributors are killed, and the registry is not read more often than that explains',
  KILLS,
  2,
);
