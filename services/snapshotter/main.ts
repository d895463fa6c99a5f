import { agentMain } from './agent-main.ts';

await agentMain();
