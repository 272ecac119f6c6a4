import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import { health as healthQuery, stats as statsQuery } from "../../api/queries";
import { Asked, Button, Card, Facts, Page, State } from "../../ui/basics";
import { bytes, duration, number, oneLine } from "../../ui/text";

interface Check {
  status: string;
  reason?: string;
  state?: string;
}

/** A check for each part. */
export function HealthPage() {
  const asked = useQuery({ ...healthQuery(), refetchOnMount: "always" });
  const stats = useQuery(statsQuery());
  return (
    <Page
      title="Health"
      lead={asked.data !== undefined && (asked.data.status === "healthy" ? "Everything is well." : "Calls work, but something needs a look.")}
      actions={
        <Button busy={asked.isFetching} onClick={() => void asked.refetch()}>
          Look again
        </Button>
      }
    >
      <Asked query={asked}>
        {({ checks, version }) => {
          const { servers, ...parts } = checks as Record<string, Check> & { servers?: Record<string, Check> };
          return (
            <div className="columns">
              <Card title="Parts">
                <ul className="rows">
                  {Object.entries(parts as Record<string, Check>).map(([name, check]) => (
                    <CheckRow key={name} name={name} check={check} />
                  ))}
                </ul>
              </Card>
              <div>
                <Card title="Servers">
                  <ul className="rows">
                    {Object.entries(servers ?? {}).map(([name, check]) => (
                      <CheckRow key={name} name={name} check={check} link />
                    ))}
                  </ul>
                </Card>
                <Card title="The process">
                  <Facts
                    of={[
                      ["version", version],
                      ["up for", duration((stats.data?.uptime_seconds ?? 0) * 1000)],
                      ["memory", bytes(stats.data?.memory_bytes)],
                      ["event subscribers", number(stats.data?.event_subscribers)],
                      ["newest event", number(stats.data?.last_event_seq)],
                      ["journal", `${number(stats.data?.journal["written"])} calls written, ${number(stats.data?.journal["lost"])} lost`],
                    ]}
                  />
                </Card>
              </div>
            </div>
          );
        }}
      </Asked>
    </Page>
  );
}

function CheckRow({ name, check, link = false }: { name: string; check: Check; link?: boolean }) {
  return (
    <li>
      <State of={check.status} fallback="warn" />
      {link ? (
        <Link to="/ui/servers/$serverId" params={{ serverId: name }}>
          {oneLine(name, 60)}
        </Link>
      ) : (
        <strong>{oneLine(name, 60)}</strong>
      )}
      <span className="dim grow">{oneLine(check.reason ?? check.state ?? "", 240)}</span>
    </li>
  );
}
