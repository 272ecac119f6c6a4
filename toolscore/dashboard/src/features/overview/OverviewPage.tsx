import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import { useMemo, useRef, useState } from "react";
import { servers as serversQuery, stats as statsQuery } from "../../api/queries";
import { useSeries } from "../../app/Shell";
import { hits } from "../../live/series";
import { useMe } from "../../app/session";
import { Asked, Button, Card, Empty, Page, State } from "../../ui/basics";
import { Chart } from "../../ui/Chart";
import { counted, duration, number, oneLine, percent } from "../../ui/text";
import { FirstRun } from "./FirstRun";
import { Needs } from "./Needs";

const HIDDEN = "toolscore.first-run";
const FEW_CALLS = 20;

function wasHidden(): boolean {
  try {
    return localStorage.getItem(HIDDEN) !== null;
  } catch {
    return false;
  }
}

const HOUR_SECONDS = 3600;

/** What is here, does it work, what just happened, what needs somebody. */
export function OverviewPage() {
  const stats = useQuery(statsQuery());
  const me = useMe();
  const [asked, ask] = useState<boolean | null>(() => (wasHidden() ? false : null));
  const firstSeen = useRef<number | null>(null);
  firstSeen.current ??= stats.data?.calls_total ?? null;
  const shown = asked ?? (firstSeen.current !== null && firstSeen.current < FEW_CALLS);
  return (
    <Page
      title="Overview"
      lead={`One address for every tool an agent can use: what is here, whether it works, and what needs you.${me.admin ? "" : " The figures are those of all callers together."}`}
      actions={
        shown ? undefined : (
          <Button look="quiet" onClick={() => ask(true)}>
            How to begin
          </Button>
        )
      }
    >
      {shown && (
        <FirstRun
          onHide={() => {
            ask(false);
            try {
              localStorage.setItem(HIDDEN, "1");
            } catch {
              // hidden until the page is loaded again
            }
          }}
        />
      )}
      <Needs />
      <Asked query={stats}>
        {(now) => {
          const minute = now.windows["1m"];
          const hour = now.windows["1h"];
          const looked = hits(now) + (now.cache["misses"] ?? 0);
          return (
            <div className="tiles">
              <Tile name="Calls, last minute" value={number(minute?.count)} note={`${number(now.calls_total)} since the start, ${now.calls_in_flight} under way`} />
              <Tile name="p95, last minute" value={duration(minute?.p95_ms)} note={`half within ${duration(minute?.p50_ms)}`} />
              <Tile
                name={now.uptime_seconds < HOUR_SECONDS ? "Failed, since the start" : "Failed, last hour"}
                value={hour?.count ? percent(hour.errors / hour.count) : "–"}
                note={hour?.count ? `${number(hour.errors)} of ${number(hour.count)}` : "no calls"}
                tone={hour?.errors ? "bad" : ""}
              />
              <Tile name="From the cache" value={looked ? percent(hits(now) / looked) : "–"} note={`${number(hits(now))} results`} />
              <Tile name="Tools" value={number(now.tools_total)} note={counted(Object.values(now.servers).reduce((sum, one) => sum + one, 0), "server")} />
            </div>
          );
        }}
      </Asked>
      <Charts />
      <div className="columns">
        <ServersCard />
        <TopTools />
      </div>
    </Page>
  );
}

function Tile({ name, value, note, tone = "" }: { name: string; value: string; note: string; tone?: string }) {
  return (
    <section className={`tile ${tone}`} aria-label={name}>
      <h2>{name}</h2>
      <p className="figure">{value}</p>
      <p className="dim">{note}</p>
    </section>
  );
}

const rate = (value: number): string => (value >= 10 || value === 0 ? value.toFixed(0) : value.toFixed(1));

const OUTCOME_COLOURS = ["bad", "warn", "info", "violet"];

function Charts() {
  const points = useSeries();
  const at = useMemo(() => points.map((one) => one.at), [points]);
  const bad = useMemo(() => {
    const sums = new Map<string, number>();
    for (const point of points)
      for (const [name, value] of Object.entries(point.outcomes)) if (name !== "ok" && value > 0) sums.set(name, (sums.get(name) ?? 0) + value);
    return [...sums].sort((one, two) => two[1] - one[1]).slice(0, OUTCOME_COLOURS.length).map(([name]) => name);
  }, [points]);
  const calls = useMemo(() => [at, points.map((one) => one.rate), points.map((one) => one.cached)], [at, points]);
  const latency = useMemo(
    () => [at, points.map((one) => one.p50), points.map((one) => one.p95), points.map((one) => one.p99)],
    [at, points],
  );
  const failures = useMemo(
    () => [at, ...(bad.length > 0 ? bad : ["none"]).map((name) => points.map((one) => one.outcomes[name] ?? 0))],
    [at, points, bad],
  );
  return (
    <div className="charts">
      <Card title="Calls a second">
        <Chart
          label="Calls a second over the last 15 minutes"
          lines={[
            { label: "all", colour: "accent", fill: true },
            { label: "from the cache", colour: "violet" },
          ]}
          data={calls}
          say={rate}
        />
      </Card>
      <Card title="Latency">
        <Chart
          label="Latency over the last 15 minutes"
          lines={[
            { label: "p50", colour: "good" },
            { label: "p95", colour: "info" },
            { label: "p99", colour: "warn" },
          ]}
          data={latency}
          say={duration}
        />
      </Card>
      <Card title="Failures a second, by outcome">
        <Chart
          label="Failures a second over the last 15 minutes"
          lines={(bad.length > 0 ? bad : ["none"]).map((name, index) => ({
            label: name.replaceAll("_", " "),
            colour: bad.length > 0 ? (OUTCOME_COLOURS[index] ?? "bad") : "dim",
            fill: index === 0 && bad.length > 0,
          }))}
          data={failures}
          say={rate}
        />
      </Card>
    </div>
  );
}

const ORDER = ["failed", "down", "starting", "up", "idle", "stopped"];
const SHOWN_SERVERS = 12;

function ServersCard() {
  const servers = useQuery(serversQuery());
  return (
    <Card title="Servers" actions={<Link to="/ui/servers">All servers</Link>}>
      <Asked query={servers}>
        {({ servers: all }) => {
          const sorted = [...all].sort((one, two) => ORDER.indexOf(one.state) - ORDER.indexOf(two.state));
          const states = ORDER.map((state) => [state, all.filter((one) => one.state === state).length] as const).filter(([, count]) => count > 0);
          return (
            <>
              <p className="badges">
                {states.map(([state, count]) => (
                  <span key={state}>
                    {count} <State of={state} />
                  </span>
                ))}
              </p>
              <ul className="rows">
                {sorted.slice(0, SHOWN_SERVERS).map((one) => (
                  <li key={one.server_id}>
                    <Link to="/ui/servers/$serverId" params={{ serverId: one.server_id }}>
                      {oneLine(one.server_id, 40)}
                    </Link>
                    <span className="dim">{counted(one.tools ?? 0, "tool")}</span>
                    <State of={one.state} />
                  </li>
                ))}
              </ul>
            </>
          );
        }}
      </Asked>
    </Card>
  );
}

function TopTools() {
  const stats = useQuery(statsQuery());
  return (
    <Card title="Called most" actions={<Link to="/ui/calls">All calls</Link>}>
      <Asked query={stats}>
        {({ top_tools: top = [] }) =>
          top.length === 0 ? (
            <Empty title="No calls yet">
              <Link to="/ui/tools">Choose a tool and run it</Link>
            </Empty>
          ) : (
            <ul className="rows">
              {top.map((one) => (
                <li key={one.tool_id}>
                  {one.tool_id === "-" ? (
                    <span className="dim">names that do not exist</span>
                  ) : (
                    <Link to="/ui/tools/$toolId" params={{ toolId: one.tool_id }}>
                      {oneLine(one.tool_id, 48)}
                    </Link>
                  )}
                  <span className="dim">{number(one.calls)}</span>
                </li>
              ))}
            </ul>
          )
        }
      </Asked>
    </Card>
  );
}
