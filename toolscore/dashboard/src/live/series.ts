import type { Schemas, Stats } from "../api/client";

/** The calls of a moment, as charts show them. Rates are in calls a second. */
export interface Point {
  at: number;
  rate: number;
  failed: number;
  cached: number;
  p50: number | null;
  p95: number | null;
  p99: number | null;
  outcomes: Record<string, number>;
}

export const SPAN_SECONDS = 900;

/** The last 15 minutes, the oldest first: what the gateway remembers, then a point each second. */
export class Series {
  points: Point[] = [];
  #before: Stats | null = null;

  /** Takes what the gateway remembers from before; what this page saw itself stays. */
  seed(recent: Schemas["RecentStats"], now: number): void {
    const step = recent.step_seconds;
    const first = this.points[0]?.at ?? now;
    const known = new Map(recent.points.map((one) => [Math.round((now - one.age_seconds) / step), one]));
    const seeded: Point[] = [];
    for (let slot = Math.ceil((now - SPAN_SECONDS) / step); slot * step < first; slot++) {
      const one = known.get(slot);
      const count = one?.count ?? 0;
      seeded.push({
        at: slot * step,
        rate: count / step,
        failed: (count - (one?.outcomes["ok"] ?? 0)) / step,
        cached: (one?.cached ?? 0) / step,
        p50: one?.p50_ms ?? null,
        p95: one?.p95_ms ?? null,
        p99: one?.p99_ms ?? null,
        outcomes: Object.fromEntries(Object.entries(one?.outcomes ?? {}).map(([name, many]) => [name, many / step])),
      });
    }
    this.points = [...seeded, ...this.points];
  }

  /** Takes the figures of this second. */
  add(stats: Stats, now: number): void {
    const before = this.#before;
    this.#before = stats;
    if (before === null || stats.uptime_seconds <= before.uptime_seconds) return;
    const seconds = stats.uptime_seconds - before.uptime_seconds;
    const outcomes = Object.fromEntries(
      Object.entries(stats.outcomes).map(([name, count]) => [name, (count - (before.outcomes[name] ?? 0)) / seconds]),
    );
    const rate = (stats.calls_total - before.calls_total) / seconds;
    const latest = stats.windows["10s"];
    this.points = [
      ...this.points.filter((one) => one.at > now - SPAN_SECONDS),
      {
        at: now,
        rate,
        failed: Math.max(0, rate - (outcomes["ok"] ?? 0)),
        cached: (hits(stats) - hits(before)) / seconds,
        p50: latest?.p50_ms ?? null,
        p95: latest?.p95_ms ?? null,
        p99: latest?.p99_ms ?? null,
        outcomes,
      },
    ];
  }
}

/** Results that came out of the cache, ever. */
export function hits(stats: Stats): number {
  const { misses: _misses, ...levels } = stats.cache as Record<string, number>;
  return Object.values(levels).reduce((sum, one) => sum + one, 0);
}
