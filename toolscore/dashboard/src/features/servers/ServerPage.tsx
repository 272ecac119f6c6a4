import { useMutation, useQuery } from "@tanstack/react-query";
import { Link, getRouteApi } from "@tanstack/react-router";
import { api, whole, type Tool } from "../../api/client";
import { queryClient, server as serverQuery, toolsOf } from "../../api/queries";
import { useMe } from "../../app/session";
import { Ago, Asked, Badge, Button, Card, Empty, Facts, Page, State, StrangersText, toast } from "../../ui/basics";
import { DataTable, type ColumnDef } from "../../ui/DataTable";
import { bytes, number, oneLine, visible } from "../../ui/text";
import { ServerActions } from "./ServerActions";

const route = getRouteApi("/ui/servers/$serverId");
const LOOK_AGAIN_MS = 2000;

/** One server: how it is, how it is started, what it says, which tools it has. */
export function ServerPage() {
  const { serverId } = route.useParams();
  const me = useMe();
  // What a server writes to its stderr is no event: while this page is open it is asked for.
  const asked = useQuery({ ...serverQuery(serverId), refetchInterval: LOOK_AGAIN_MS });
  return (
    <Page
      title={serverId}
      lead={
        asked.data !== undefined && (
          <span className="badges">
            <State of={asked.data.disabled ? "disabled" : asked.data.state} />
            {asked.data.circuit !== undefined && asked.data.circuit !== "closed" && <Badge tone="bad">circuit {asked.data.circuit.replace("_", " ")}</Badge>}
            {asked.data.description && <span>{oneLine(asked.data.description)}</span>}
          </span>
        )
      }
      actions={me.admin && asked.data !== undefined && <ServerActions server={asked.data} />}
    >
      <Asked query={asked}>
        {(one) => (
          <>
            {one.last_error !== null && one.state !== "up" && one.state !== "idle" && (
              <Card title="Why">
                <StrangersText text={one.last_error} />
                {one.next_try_at && (
                  <p className="dim">
                    It is tried again at {new Date(one.next_try_at).toLocaleTimeString()}.
                  </p>
                )}
              </Card>
            )}
            <div className="columns">
              <Card title="Facts">
                <Facts
                  of={[
                    ["up since", one.up_since ? <Ago key="up" at={one.up_since} /> : null],
                    ["kind", (one.kind ?? "").replace("_", " ")],
                    ["says it is", one.server_info ? `${one.server_info.name} ${one.server_info.version}` : null],
                    ["speaks", one.protocol_version ?? null],
                    ["runs with", one.runs_with ? `${one.runs_with}: it was written for an older SDK` : null],
                    ["memory", one.memory_bytes ? bytes(one.memory_bytes) : null],
                    ["process", one.pid ? String(one.pid) : null],
                    ["calls under way", number(one.calls_in_flight ?? 0)],
                    ["restarts", number(one.restarts ?? 0)],
                    ["instances", (one.instances ?? 0) > 1 ? number(one.instances) : null],
                    ["command", one.command ? <code key="command">{visible([one.command, ...(one.args ?? [])].join(" "))}</code> : null],
                    ["address", one.url ? <code key="url">{visible(one.url)}</code> : null],
                    ["variables", (one.env_keys ?? []).join(", ")],
                    ["headers", (one.header_names ?? []).join(", ")],
                    ["its own address", <code key="own">{`${window.location.origin}/servers/${encodeURIComponent(serverId)}/mcp`}</code>],
                  ]}
                />
                {Object.keys(one.mended ?? {}).length > 0 && (
                  <details>
                    <summary>{Object.keys(one.mended ?? {}).length} tools were mended to be shown</summary>
                    <ul>
                      {Object.entries(one.mended ?? {}).map(([name, told]) => (
                        <li key={name}>
                          {oneLine(name, 60)}: {oneLine(told.join("; "), 300)}
                        </li>
                      ))}
                    </ul>
                  </details>
                )}
                <Link to="/ui/calls" search={{ server_id: serverId }}>
                  Its calls
                </Link>
              </Card>
              <Card title="Its last words on stderr" actions={<span className="dim">live</span>}>
                {one.stderr === null ? (
                  <Empty title="For admins" />
                ) : one.stderr.length === 0 ? (
                  <Empty title="It has said nothing" />
                ) : (
                  <StrangersText text={one.stderr.join("\n")} className="log" />
                )}
              </Card>
            </div>
            <ServerTools serverId={serverId} />
          </>
        )}
      </Asked>
    </Page>
  );
}

const MANY = 40;

function ServerTools({ serverId }: { serverId: string }) {
  const me = useMe();
  const shown = useQuery(toolsOf(serverId, me.admin));
  const flip = useMutation({
    mutationFn: (tool: Tool) => {
      const params = { params: { path: { tool_id: tool.tool_id } } };
      return whole(tool.disabled ? api.POST("/api/v1/tools/{tool_id}/enable", params) : api.POST("/api/v1/tools/{tool_id}/disable", params));
    },
    onError: (error) => toast(error.message, "bad"),
    onSettled: () => queryClient.invalidateQueries({ queryKey: ["tools"] }),
  });
  const columns: ColumnDef<Tool>[] = [
    {
      id: "tool",
      header: "Tool",
      accessorFn: (row) => row.name,
      cell: ({ row }) => (
        <Link to="/ui/tools/$toolId" params={{ toolId: row.original.tool_id }}>
          {oneLine(row.original.name, 60)}
        </Link>
      ),
    },
    { id: "what", header: "What it does", accessorFn: (row) => row.description, enableSorting: false, cell: ({ row }) => <span className="clip">{oneLine(row.original.description)}</span> },
    { id: "tokens", header: "Tokens", accessorFn: (row) => row.tokens_estimate, cell: ({ row }) => number(row.original.tokens_estimate) },
    ...(me.admin
      ? [
          {
            id: "on",
            header: "On",
            enableSorting: false,
            cell: ({ row }) => (
              <Button
                role="switch"
                aria-checked={!row.original.disabled}
                aria-label={`${row.original.name} is ${row.original.disabled ? "disabled" : "enabled"}`}
                className="switch"
                busy={flip.isPending && flip.variables.tool_id === row.original.tool_id}
                onClick={() => flip.mutate(row.original)}
              >
                <span aria-hidden />
              </Button>
            ),
          } satisfies ColumnDef<Tool>,
        ]
      : []),
  ];
  return (
    <Card title={shown.data === undefined ? "Tools" : `Tools (${number(shown.data.length)})`}>
      <Asked query={shown}>
        {(rows) => (
          <DataTable<Tool>
            label="Tools of this server"
            rows={rows}
            columns={columns}
            grid={`minmax(12rem, 1fr) minmax(12rem, 2.5fr) 5rem${me.admin ? " 4rem" : ""}`}
            rowKey={(row) => row.tool_id}
            height={rows.length > MANY ? "fit" : "short"}
            empty={<Empty title="It has no tools" />}
          />
        )}
      </Asked>
    </Card>
  );
}
