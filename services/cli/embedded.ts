/**
 * The agent's process on a node that works alone and takes events: agent, gateway and indexer in one, on a bus of their own. Started
 * by the keeper in place of `services/snapshotter/main.ts`.
 */
import { agentMain } from '#services/snapshotter/agent-main.ts';

await agentMain(async () => (await import('./embedded-services.ts')).EMBEDDED);
