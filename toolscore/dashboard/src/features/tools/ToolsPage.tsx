import { useInfiniteQuery, useQuery } from "@tanstack/react-query";
import { Link, getRouteApi, useNavigate } from "@tanstack/react-router";
import { useDeferredValue, useEffect, useMemo, useRef } from "react";
import type { FoundTool, Tool } from "../../api/client";
import { foundTools, servers, tools as toolsQuery } from "../../api/queries";
import { useMe } from "../../app/session";
import { Asked, Badge, Card, Empty, Meter, Page, SearchField, State } from "../../ui/basics";
import { DataTable, type ColumnDef } from "../../ui/DataTable";
import { useDraft } from "../../ui/draft";
import { counted, number, oneLine } from "../../ui/text";

const route = getRouteApi("/ui/tools");
const WAIT_MS = 250;
const WORDS_OF_A_TASK = 3;

/** All tools: as they are listed, or as the product's own search ranks them. */
export function ToolsPage() {
  const search = route.useSearch();
  const navigate = useNavigate({ from: "/ui/tools" });
  const me = useMe();
  const { typed, setTyped, settle } = useDraft(search.q, (q) => void navigate({ search: (now) => ({ ...now, q }), replace: true }));
  const pause = useRef(settle);
  useEffect(() => {
    pause.current = settle;
  });
  useEffect(() => {
    const timer = setTimeout(() => pause.current(), WAIT_MS);
    return () => clearTimeout(timer);
  }, [typed]);
  const query = useDeferredValue(search.q ?? "");
  const all = useQuery(servers());
  return (
    <Page title="Tools" lead="Search by words or by what is to be done: this is the search that agents use.">
      <Card>
        <div className="filters" role="search">
          <SearchField label="Search tools" value={typed} placeholder="what time is it in Tokyo" onChange={setTyped} />
          <label>
            Server{" "}
            <select value={search.server ?? ""} onChange={(event) => void navigate({ search: (now) => ({ ...now, server: event.target.value || undefined }) })}>
              <option value="">all</option>
              {(all.data?.servers ?? []).map((one) => (
                <option key={one.server_id} value={one.server_id}>
                  {oneLine(one.server_id, 40)}
                </option>
              ))}
            </select>
          </label>
          {me.admin && (
            <label className="check">
              <input
                type="checkbox"
                checked={search.disabled ?? false}
                onChange={(event) => void navigate({ search: (now) => ({ ...now, disabled: event.target.checked || undefined }) })}
              />
              disabled ones
            </label>
          )}
        </div>
        {query !== "" && !search.disabled ? (
          <Found query={query} server={search.server} />
        ) : (
          <Listed server={search.server} disabled={search.disabled ?? false} />
        )}
      </Card>
    </Page>
  );
}

type Row = Tool & Partial<Pick<FoundTool, "relevance" | "rank">>;

function name(row: Row) {
  return (
    <Link to="/ui/tools/$toolId" params={{ toolId: row.tool_id }} className="tool-name">
      {oneLine(row.name, 60)}
      <span className="dim">{oneLine(row.server_id, 40)}</span>
    </Link>
  );
}

function condition(row: Row) {
  if (row.disabled) return <State of="disabled" />;
  if (row.quarantined) return <Badge tone="warn">quarantined</Badge>;
  if (row.circuit === "open") return <State of="open" />;
  return <State of={row.server_state} />;
}

const COLUMNS: ColumnDef<Row>[] = [
  { id: "tool", header: "Tool", accessorFn: (row) => row.tool_id, cell: ({ row }) => name(row.original) },
  { id: "what", header: "What it does", accessorFn: (row) => row.description, enableSorting: false, cell: ({ row }) => <span className="clip">{oneLine(row.original.description)}</span> },
  { id: "state", header: "State", accessorFn: (row) => row.server_state, cell: ({ row }) => condition(row.original) },
  { id: "score", header: "Score", accessorFn: (row) => row.score, cell: ({ row }) => <Meter value={row.original.score} label="score" /> },
  { id: "tokens", header: "Tokens", accessorFn: (row) => row.tokens_estimate, cell: ({ row }) => <span className="right">{number(row.original.tokens_estimate)}</span> },
];
const RELEVANCE: ColumnDef<Row> = {
  id: "fits",
  header: "Fits",
  accessorFn: (row) => row.relevance ?? 0,
  cell: ({ row }) => <Meter value={row.original.relevance ?? 0} label="relevance" />,
};

function Listed({ server, disabled }: { server: string | undefined; disabled: boolean }) {
  const asked = useInfiniteQuery(toolsQuery({ server, disabled }));
  const rows = useMemo(() => asked.data?.pages.flatMap((page) => page.tools) ?? [], [asked.data]);
  const tokens = rows.reduce((sum, one) => sum + one.tokens_estimate, 0);
  return (
    <Asked query={asked}>
      {({ pages }) => (
        <>
          <p className="dim">
            {server === undefined && !disabled ? counted(pages[0]?.total_count ?? 0, "tool") : counted(rows.length, "tool")}
            {asked.hasNextPage ? `, ${number(rows.length)} loaded` : `; a model reads about ${number(tokens)} tokens to know them all`}
          </p>
          <DataTable<Row>
            label="Tools"
            rows={rows}
            columns={COLUMNS}
            grid="minmax(14rem, 1.2fr) minmax(12rem, 2fr) 7rem 8rem 5rem"
            rowKey={(row) => row.tool_id}
            more={asked.hasNextPage && !asked.isFetchingNextPage}
            onEnd={() => void asked.fetchNextPage()}
            empty={
              <Empty title={disabled ? "No tool is disabled" : "No tools here"}>
                {!disabled && <Link to="/ui/servers">Add a server, or see why one has none</Link>}
              </Empty>
            }
          />
        </>
      )}
    </Asked>
  );
}

function Found({ query, server }: { query: string; server: string | undefined }) {
  const asked = useQuery(foundTools(query));
  return (
    <Asked query={asked}>
      {({ tools }) => {
        const rows: Row[] = tools.filter((one) => server === undefined || one.server_id === server);
        return (
          <>
            <p className="dim" aria-live="polite">
              The {counted(rows.length, "tool")} that fit best, the best first.
              {query.split(/\s+/).length >= WORDS_OF_A_TASK && (
                <>
                  {" "}
                  <Link to="/ui/discover" search={{ task: query }}>
                    Is one missing for this?
                  </Link>
                </>
              )}
            </p>
            <DataTable<Row>
              label="Tools that fit"
              rows={rows}
              columns={[COLUMNS[0]!, COLUMNS[1]!, RELEVANCE, COLUMNS[3]!, COLUMNS[4]!]}
              grid="minmax(14rem, 1.2fr) minmax(12rem, 2fr) 8rem 8rem 5rem"
              rowKey={(row) => row.tool_id}
              empty={<Empty title="Nothing fits" />}
            />
          </>
        );
      }}
    </Asked>
  );
}
