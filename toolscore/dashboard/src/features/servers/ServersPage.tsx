import { useQuery } from "@tanstack/react-query";
import { Link, getRouteApi, useNavigate } from "@tanstack/react-router";
import { Plus } from "lucide-react";
import type { Server } from "../../api/client";
import { servers as serversQuery } from "../../api/queries";
import { useMe } from "../../app/session";
import { Ago, Asked, Badge, Button, Card, Empty, Page, State } from "../../ui/basics";
import { DataTable, type ColumnDef } from "../../ui/DataTable";
import { bytes, causeFirst, counted, number, oneLine } from "../../ui/text";
import { Attach } from "./Attach";
import { ServerActions } from "./ServerActions";

const route = getRouteApi("/ui/servers");

/** All servers: what they do, since when, at what cost. */
export function ServersPage() {
  const { add } = route.useSearch();
  const navigate = useNavigate({ from: "/ui/servers" });
  const me = useMe();
  const asked = useQuery(serversQuery());
  const columns: ColumnDef<Server>[] = [
    {
      id: "server",
      header: "Server",
      accessorFn: (row) => row.server_id,
      cell: ({ row }) => (
        <Link to="/ui/servers/$serverId" params={{ serverId: row.original.server_id }} className="tool-name">
          {oneLine(row.original.server_id, 60)}
          <span className="dim">{(row.original.kind ?? "").replace("_", " ")}</span>
        </Link>
      ),
    },
    {
      id: "state",
      header: "State",
      accessorFn: (row) => row.state,
      cell: ({ row }) => (
        <span className="badges">
          <State of={row.original.disabled ? "disabled" : row.original.state} />
          {row.original.circuit !== undefined && row.original.circuit !== "closed" && <Badge tone="bad">circuit {row.original.circuit.replace("_", " ")}</Badge>}
        </span>
      ),
    },
    { id: "since", header: "Up since", accessorFn: (row) => row.up_since ?? "", cell: ({ row }) => <Ago at={row.original.up_since} /> },
    { id: "tools", header: "Tools", accessorFn: (row) => row.tools ?? 0, cell: ({ row }) => number(row.original.tools ?? 0) },
    { id: "memory", header: "Memory", accessorFn: (row) => row.memory_bytes ?? 0, cell: ({ row }) => (row.original.memory_bytes ? bytes(row.original.memory_bytes) : "–") },
    { id: "restarts", header: "Restarts", accessorFn: (row) => row.restarts ?? 0, cell: ({ row }) => number(row.original.restarts ?? 0) },
    { id: "error", header: "Last error", accessorFn: (row) => row.last_error ?? "", enableSorting: false, cell: ({ row }) => <span className="clip dim" title={oneLine(row.original.last_error ?? "", 400)}>{oneLine(causeFirst(row.original.last_error ?? ""), 160)}</span> },
    ...(me.admin
      ? [{ id: "do", header: "Do", enableSorting: false, cell: ({ row }) => <ServerActions server={row.original} short /> } satisfies ColumnDef<Server>]
      : []),
  ];
  const show = (open: boolean): void => void navigate({ search: { add: open || undefined } });
  return (
    <Page
      title="Servers"
      lead={asked.data !== undefined && counted(asked.data.total_count, "server")}
      actions={
        me.admin && (
          <Button look="primary" onClick={() => show(true)}>
            <Plus size={16} aria-hidden /> Add a server
          </Button>
        )
      }
    >
      <Card>
        <Asked query={asked}>
          {({ servers }) => (
            <DataTable<Server>
              label="Servers"
              rows={servers}
              columns={columns}
              grid={`minmax(12rem, 1.5fr) 8.5rem 7rem 4rem 5.5rem 5.5rem minmax(8rem, 2fr)${me.admin ? " 7rem" : ""}`}
              rowKey={(row) => row.server_id}
              empty={
                <Empty title="No server yet">
                  {me.admin && (
                    <Button look="primary" onClick={() => show(true)}>
                      Add the first
                    </Button>
                  )}
                </Empty>
              }
            />
          )}
        </Asked>
      </Card>
      {me.admin && <Attach open={add ?? false} onClose={() => show(false)} taken={new Set((asked.data?.servers ?? []).map((one) => one.server_id))} />}
    </Page>
  );
}
