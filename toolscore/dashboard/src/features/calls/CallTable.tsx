import { Link } from "@tanstack/react-router";
import type { Call } from "../../api/client";
import { Badge, Empty, State } from "../../ui/basics";
import { DataTable, type ColumnDef } from "../../ui/DataTable";
import { clock, duration, oneLine } from "../../ui/text";

const COLUMNS: ColumnDef<Call>[] = [
  {
    id: "at",
    header: "When",
    accessorFn: (row) => row.call_id,
    cell: ({ row }) => (
      <Link to="/ui/calls/$callId" params={{ callId: row.original.call_id }}>
        <time dateTime={row.original.at} title={new Date(row.original.at).toLocaleString()}>
          {clock(row.original.at)}
        </time>
      </Link>
    ),
  },
  {
    id: "tool",
    header: "Tool",
    accessorFn: (row) => row.tool_id,
    cell: ({ row }) => <span className="clip">{oneLine(row.original.tool_id === "-" ? `${row.original.name} (there is none)` : row.original.tool_id, 80)}</span>,
  },
  {
    id: "outcome",
    header: "Outcome",
    accessorFn: (row) => row.outcome,
    cell: ({ row }) => (
      <span className="badges">
        <State of={row.original.outcome} />
        {row.original.cache !== null && <Badge tone="info">{row.original.cache}</Badge>}
        {row.original.parent !== null && <Badge title="made by code">in code</Badge>}
      </span>
    ),
  },
  { id: "took", header: "Took", accessorFn: (row) => row.duration_ms, cell: ({ row }) => <span className="right">{duration(row.original.duration_ms)}</span> },
  { id: "who", header: "Caller", accessorFn: (row) => row.principal, cell: ({ row }) => <span className="clip">{oneLine(row.original.principal, 40)}</span> },
  { id: "error", header: "Error", accessorFn: (row) => row.error ?? "", cell: ({ row }) => <span className="clip dim">{oneLine(row.original.error ?? "", 160)}</span> },
];

/** Calls, the newest first. */
export function CallTable({ calls, more = false, onEnd }: { calls: Call[]; more?: boolean; onEnd?: () => void }) {
  return (
    <DataTable<Call>
      label="Calls"
      rows={calls}
      columns={COLUMNS}
      grid="7.5rem minmax(12rem, 2fr) 11rem 5.5rem 7rem minmax(8rem, 2fr)"
      rowKey={(row) => row.call_id}
      sortable={false}
      more={more}
      onEnd={onEnd}
      empty={<Empty title="No calls" />}
    />
  );
}
