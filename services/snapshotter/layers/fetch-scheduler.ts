import { BackgroundTurn } from './background-turn.ts';
import { pauseBacklog, type Backlog } from './backlog.ts';
import { gatherRun, tailOf } from './gather-run.ts';
import { LayerReadError } from './layer-error.ts';
import {
  closedError,
  endRun,
  hasWaiters,
  RANK,
  readError,
  sizeOf,
  type Run,
  type SpanTask,
  type Waiter,
  wake,
} from './span-task.ts';
import { FETCH_LIMITS, FetchPace, type FetchLimits } from './fetch-pace.ts';
import type { FailedFetch, FetchObserver, FetchTarget } from './fetch-target.ts';
import type { FetchPriority, SpanBytes, SpanRequest, SpanSource } from './span-source.ts';

const ORDER: readonly FetchPriority[] = ['demand', 'prefetch', 'background'];

/**
 * Decides what is fetched, when and together with what.
 *
 * One fetch per span, whoever waits for it; adjacent spans in one request; demand before prefetch before background, each
 * with slots of its own, so that no demand read waits behind lower work: it overtakes what is not started, and cuts what is in
 * flight and in its way. A span that fails goes to the next source, then round again after a pause, until a bound.
 */
export class FetchScheduler {
  readonly #sources: readonly SpanSource[];
  readonly #observer: FetchObserver;
  readonly #limits: FetchLimits;
  readonly #now: () => number;
  readonly #pace: FetchPace;
  readonly #background: BackgroundTurn;
  readonly #tasks = new Map<FetchTarget, Map<number, SpanTask>>();
  readonly #queues: Record<FetchPriority, Set<SpanTask>> = {
    demand: new Set(),
    prefetch: new Set(),
    background: new Set(),
  };
  readonly #backlog = new Map<FetchTarget, Backlog>();
  readonly #running = new Set<Promise<void>>();
  readonly #runs = new Set<Run>();
  #pumpTimer: NodeJS.Timeout | undefined;
  #pumping = false;
  #closed = false;

  constructor(options: {
    /** In the order in which they are asked. */
    readonly sources: readonly SpanSource[];
    readonly observer: FetchObserver;
    readonly limits?: Partial<FetchLimits>;
    /** Milliseconds of a clock that only goes forward. */
    readonly now?: () => number;
  }) {
    this.#sources = options.sources;
    this.#observer = options.observer;
    this.#limits = { ...FETCH_LIMITS, ...options.limits };
    this.#now = options.now ?? (() => performance.now());
    this.#pace = new FetchPace(this.#limits, this.#now);
    this.#background = new BackgroundTurn(this.#pace, this.#limits.quietMs, this.#now);
  }

  /**
   * Resolves when all of `first..last` is resident. `ahead` more spans are fetched behind them in the same request where they
   * fit, without being waited for. Aborting ends this wait alone.
   * @throws LayerReadError
   */
  ensure(target: FetchTarget, first: number, last: number, signal: AbortSignal, ahead = 0): Promise<void> {
    signal.throwIfAborted();
    if (this.#closed) return Promise.reject(closedError(target));
    this.#pace.noteDemand();
    return new Promise<void>((resolve, reject) => {
      const waiter: Waiter = {
        tasks: new Set(),
        settle: (error) => {
          signal.removeEventListener('abort', onAbort);
          for (const task of waiter.tasks) task.waiters.delete(waiter);
          waiter.tasks.clear();
          if (error === undefined) resolve();
          else reject(error);
        },
      };
      const onAbort = () => {
        const left = [...waiter.tasks];
        waiter.settle(signal.reason);
        for (const task of left) this.#abandoned(task);
      };
      for (let span = first; span <= last; span++) {
        if (target.has(span)) continue;
        const task = this.#want(target, span, 'demand');
        task.waiters.add(waiter);
        waiter.tasks.add(task);
      }
      if (waiter.tasks.size === 0) {
        resolve();
        return;
      }
      signal.addEventListener('abort', onAbort, { once: true });
      // The files of a directory lie together, and who reads one of them mostly reads more.
      const tail = tailOf(target, this.#tasks.get(target), last, this.#pace.tailBytes());
      this.#wantAll(target, last + 1, Math.max(ahead, tail), 'prefetch');
      this.#pumpSoon();
    });
  }

  /** Something goes on that demand reads will follow, such as a pull: the background waits. */
  noteActivity(): void {
    this.#pace.noteDemand();
  }

  /** Fetches `count` spans from `first` on before they are asked for. */
  prefetch(target: FetchTarget, first: number, count: number): void {
    if (this.#closed) return;
    this.#wantAll(target, first, count, 'prefetch');
    this.#pumpSoon();
  }

  /** Completes the layer in the background. Idempotent. */
  complete(target: FetchTarget): void {
    if (this.#closed || this.#backlog.has(target)) return;
    this.#backlog.set(target, { cursor: 0, pausedUntilMs: 0, pauses: 0 });
    this.#pumpSoon();
  }

  /** Stops all that nobody waits for. */
  forget(target: FetchTarget): void {
    this.#backlog.delete(target);
    for (const task of this.#tasks.get(target)?.values() ?? []) {
      if (task.waiters.size === 0 && task.state !== 'running' && task.state !== 'storing') this.#drop(task);
    }
    for (const run of this.#runs) {
      if (!run.isStream || run.target !== target || hasWaiters(run)) continue;
      for (const task of run.tasks.values()) if (task.state === 'running') this.#drop(task);
      endRun(run, 'Nobody uses the layer any more');
    }
  }

  /** Waiters get an error; resolves when nothing is in flight or being stored. */
  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#pumpTimer);
    this.#backlog.clear();
    for (const tasks of this.#tasks.values()) {
      for (const task of tasks.values()) this.#finish(task, closedError(task.target));
    }
    for (const run of this.#runs) endRun(run, 'The scheduler is closing');
    await Promise.allSettled(this.#running);
  }

  #wantAll(target: FetchTarget, first: number, count: number, priority: FetchPriority): void {
    const end = Math.min(first + count, target.map.spanCount);
    for (let span = first; span < end; span++) if (!target.has(span)) this.#want(target, span, priority);
  }

  #want(target: FetchTarget, span: number, priority: FetchPriority): SpanTask {
    let tasks = this.#tasks.get(target);
    if (tasks === undefined) this.#tasks.set(target, (tasks = new Map()));
    const known = tasks.get(span);
    if (known !== undefined) {
      if (RANK[priority] > RANK[known.priority]) this.#promote(known, priority);
      return known;
    }
    const task: SpanTask = {
      target,
      span,
      wantedMs: this.#now(),
      waiters: new Set(),
      priority,
      state: 'queued',
      run: undefined,
      timer: undefined,
      source: 0,
      rounds: 0,
      mismatches: 0,
      failedSinceMs: undefined,
    };
    tasks.set(span, task);
    if (target.suspects(span)) this.#verify(task);
    else this.#queues[priority].add(task);
    return task;
  }

  #promote(task: SpanTask, priority: FetchPriority): void {
    this.#queues[task.priority].delete(task);
    task.priority = priority;
    if (task.state === 'queued') this.#queues[priority].add(task);
    const run = task.run;
    if (task.state === 'storing' && priority === 'demand') task.target.urgent(task.span);
    if (task.state !== 'running' || run === undefined || priority !== 'demand') return;
    wake(run);
    if (run.source.urgent !== undefined) {
      run.source.urgent(run.request, task.span);
      return;
    }
    const map = task.target.map;
    const before = map.blobStart(task.span) - map.blobStart(run.next);
    if (before > this.#limits.overtakeBytes) {
      run.cut = true;
      run.abort.abort(new Error('Overtaken by a demand read'));
    }
  }

  /** The last reader has gone. What is on its way comes; what is only wanted is wanted no more. */
  #abandoned(task: SpanTask): void {
    if (task.waiters.size > 0 || task.priority !== 'demand') return;
    if (task.state === 'queued' || task.state === 'backing-off') this.#drop(task);
  }

  #drop(task: SpanTask): void {
    clearTimeout(task.timer);
    this.#queues[task.priority].delete(task);
    const tasks = this.#tasks.get(task.target);
    if (tasks?.get(task.span) === task) {
      tasks.delete(task.span);
      if (tasks.size === 0) this.#tasks.delete(task.target);
    }
  }

  #finish(task: SpanTask, error?: unknown): void {
    this.#drop(task);
    for (const waiter of task.waiters) {
      waiter.tasks.delete(task);
      task.waiters.delete(waiter);
      if (error !== undefined || waiter.tasks.size === 0) waiter.settle(error);
    }
  }

  #pumpSoon(): void {
    if (this.#pumping || this.#closed) return;
    this.#pumping = true;
    // Reads that arrive in the same turn of the loop are seen together, and go out in one request where they touch.
    setImmediate(() => {
      this.#pumping = false;
      this.#pump();
    });
  }

  #pump(): void {
    if (this.#closed) return;
    for (const priority of ORDER) {
      const queue = this.#queues[priority];
      for (const task of queue) {
        if (!this.#pace.allows(priority)) break;
        // A run takes its neighbours out of the queue as well; a set's iterator does not show what has been deleted.
        this.#start(task);
      }
    }
    this.#pumpBacklog();
  }

  #pumpBacklog(): void {
    clearTimeout(this.#pumpTimer);
    let soonestMs = Infinity;
    // As it was before it was asked whether work may start: a pause that ends between two looks at the clock would have no end.
    let pauseMs = 0;
    const now = this.#now();
    for (let started = true; started; ) {
      started = false;
      for (const [target, backlog] of Array.from(this.#backlog)) {
        pauseMs = this.#pace.backgroundPauseMs();
        if (!this.#pace.allows('background')) break;
        if (backlog.pausedUntilMs > now) {
          soonestMs = Math.min(soonestMs, backlog.pausedUntilMs - now);
          continue;
        }
        // To the end of the line, so that layers take turns.
        this.#backlog.delete(target);
        const step = this.#startBacklog(target, backlog);
        if (step !== 'complete') this.#backlog.set(target, backlog);
        started ||= step === 'started';
      }
    }
    if (this.#backlog.size === 0) return;
    const waitMs = pauseMs > 0 ? pauseMs : soonestMs;
    if (waitMs === Infinity) return;
    this.#pumpTimer = setTimeout(() => this.#pump(), Math.ceil(waitMs));
    this.#pumpTimer.unref();
  }

  #startBacklog(target: FetchTarget, backlog: Backlog): 'started' | 'waiting' | 'complete' {
    const tasks = this.#tasks.get(target);
    let span = target.nextMissing(backlog.cursor);
    while (span >= 0 && tasks?.has(span) === true) span = target.nextMissing(span + 1);
    if (span < 0) {
      // What is in flight may fail, and what was passed may have been dropped: look again when something has ended.
      const restart = backlog.cursor > 0;
      backlog.cursor = 0;
      if (target.nextMissing(0) < 0) return 'complete';
      return restart ? this.#startBacklog(target, backlog) : 'waiting';
    }
    const limit = this.#pace.runBytes('background');
    const { map } = target;
    const end = span + tailOf(target, tasks, span, limit - (map.blobEnd(span) - map.blobStart(span)));
    backlog.cursor = end + 1;
    for (let next = span; next <= end; next++) this.#want(target, next, 'background');
    for (const task of this.#queues.background) if (this.#pace.allows('background')) this.#start(task);
    return 'started';
  }

  #verify(task: SpanTask): void {
    task.state = 'verifying';
    const verified = task.target.verify(task.span, task.priority).then(
      (resident) => {
        if (resident) this.#finish(task);
        else if (this.#isLive(task)) this.#enqueue(task);
      },
      (error: unknown) => this.#finish(task, error),
    );
    this.#track(verified.then(() => this.#pumpSoon()));
  }

  #isLive(task: SpanTask): boolean {
    return this.#tasks.get(task.target)?.get(task.span) === task;
  }

  #enqueue(task: SpanTask): void {
    task.state = 'queued';
    task.run = undefined;
    this.#queues[task.priority].add(task);
    this.#pumpSoon();
  }

  #start(task: SpanTask): void {
    const { target, span } = task;
    const stream = target.map.streamOf(span);
    if (stream === undefined) return this.#startRun(task);
    // One pass over the blob brings them all: whatever of them is missing is taken along.
    const [first, last] = stream;
    this.#wantAll(target, first, last - first + 1, 'background');
    for (let at = first; at <= last; at++) {
      const other = this.#tasks.get(target)?.get(at);
      if (other?.state === 'queued' && other.source === task.source) this.#startRun(other, first);
    }
  }

  /** `stream`: first span of those that come together with the task's. */
  #startRun(task: SpanTask, stream?: number): void {
    const { target, priority } = task;
    const { map } = target;
    const source = this.#sources[task.source];
    if (source === undefined) {
      this.#finish(task, new LayerReadError('unavailable', `Cannot read ${target.layer}: no source is configured`));
      return;
    }
    const usual = this.#pace.runBytes(priority);
    const limit = stream === undefined ? (source.runBytes?.[priority] ?? usual) : Infinity;
    const { first, last, members } = gatherRun(task, this.#tasks.get(target), limit, stream);
    const request: SpanRequest = { layer: target.layer, map, origins: target.origins, first, last, priority };
    this.#launch({
      target,
      request,
      source,
      tasks: members,
      abort: new AbortController(),
      // A longer one is bounded by its source, and must not keep other layers from being prefetched.
      bytes: Math.min(usual, map.blobEnd(last) - map.blobStart(first)),
      // A pass is as urgent as what is waited for of it now, which it is asked for each span.
      counts: stream === undefined ? priority : 'prefetch',
      isStream: stream !== undefined,
      next: first,
      cut: false,
      waitedMs: -Infinity,
      wakes: new Set(),
    });
  }

  #launch(run: Run): void {
    for (const task of run.tasks.values()) {
      this.#queues[task.priority].delete(task);
      task.state = 'running';
      task.run = run;
    }
    this.#pace.started(run.counts, run.bytes);
    this.#runs.add(run);
    this.#track(
      this.#execute(run).finally(() => {
        this.#runs.delete(run);
        this.#pace.ended(run.counts, run.bytes);
        this.#pumpSoon();
      }),
    );
  }

  #track(work: Promise<void>): void {
    this.#running.add(work);
    void work.finally(() => this.#running.delete(work));
  }

  async #execute(run: Run): Promise<void> {
    const startedMs = this.#now();
    const stores: Promise<void>[] = [];
    let bytesIn = 0;
    let failure: unknown;
    try {
      await run.source.fetch(
        run.request,
        (span, bytes) => {
          const task = run.tasks.get(span);
          if (task === undefined || task.state !== 'running' || task.run !== run) return undefined;
          task.state = 'storing';
          run.next = Math.min(span + 1, run.request.last);
          bytesIn += sizeOf(bytes);
          const stored = this.#store(run, task, bytes);
          stores.push(stored);
          return run.isStream ? stored.then(() => this.#background.turn(run, sizeOf(bytes))) : stored;
        },
        run.abort.signal,
      );
    } catch (error) {
      failure = error;
    }
    if (!run.isStream) this.#pace.measured(bytesIn, this.#now() - startedMs);
    for (const task of run.tasks.values()) {
      if (task.run !== run || task.state !== 'running') continue;
      if (!this.#isLive(task)) continue;
      if (run.cut) this.#requeueCut(task);
      else this.#failed(task, run.source, failure === undefined ? 'not-delivered' : 'error', failure);
    }
    await Promise.all(stores);
  }

  #requeueCut(task: SpanTask): void {
    // The backlog finds its spans again by itself.
    if (task.priority === 'background' && task.waiters.size === 0) this.#drop(task);
    else this.#enqueue(task);
  }

  async #store(run: Run, task: SpanTask, bytes: SpanBytes): Promise<void> {
    const { target, span } = task;
    const sizeBytes = sizeOf(bytes);
    try {
      const result = await target.store(span, bytes, task.priority);
      if (result === 'stored') {
        this.#observer.fetched({
          target,
          span,
          // Peers' turn may include what this node reads from the registry for all of them.
          source: bytes.form === 'payload' || bytes.form === 'packed' ? run.source.name : 'registry',
          bytes: sizeBytes,
          priority: task.priority,
          waitedMs: this.#now() - task.wantedMs,
        });
        this.#finish(task);
        return;
      }
      if (result === 'retry') {
        if (this.#isLive(task)) this.#enqueue(task);
        return;
      }
      run.source.rejected(run.request, span);
      if (task.source === this.#sources.length - 1) task.mismatches++;
      this.#failed(task, run.source, 'mismatch', undefined);
    } catch (error) {
      this.#observer.failed({ target, span, source: run.source.name, reason: 'error', cause: error, final: true });
      this.#pauseBacklog(target);
      this.#finish(task, error);
    }
  }

  #failed(task: SpanTask, source: SpanSource, reason: FailedFetch['reason'], cause: unknown): void {
    if (!this.#isLive(task)) return;
    const { target, span } = task;
    const now = this.#now();
    task.run = undefined;
    task.failedSinceMs ??= now;
    task.source++;
    const report = (final: boolean) =>
      this.#observer.failed({ target, span, source: source.name, reason, cause, final });
    if (task.source < this.#sources.length) {
      report(false);
      this.#enqueue(task);
      return;
    }
    task.source = 0;
    task.rounds++;
    const lying = task.mismatches >= this.#limits.mismatches;
    const unwanted = task.waiters.size === 0;
    if (unwanted) this.#pauseBacklog(target);
    if (lying || unwanted || now - task.failedSinceMs >= this.#limits.giveUpMs) {
      report(!unwanted);
      this.#finish(task, unwanted ? undefined : readError(task, lying, cause));
      return;
    }
    report(false);
    task.state = 'backing-off';
    const pause = Math.min(this.#limits.maxBackOffMs, this.#limits.backOffMs * 2 ** (task.rounds - 1));
    task.timer = setTimeout(() => this.#enqueue(task), pause * (0.75 + Math.random() / 2));
  }

  #pauseBacklog(target: FetchTarget): void {
    const backlog = this.#backlog.get(target);
    if (backlog !== undefined) pauseBacklog(backlog, this.#now());
  }
}
