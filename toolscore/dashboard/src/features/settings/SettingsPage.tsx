import { useQuery } from "@tanstack/react-query";
import { useDeferredValue, useMemo, useState } from "react";
import type { Schemas } from "../../api/client";
import { settings as settingsQuery } from "../../api/queries";
import { Asked, Badge, Card, Empty, Page, SearchField } from "../../ui/basics";
import { DataTable, type ColumnDef } from "../../ui/DataTable";
import { counted, oneLine, visible } from "../../ui/text";

type Setting = Schemas["Setting"];

const COLUMNS: ColumnDef<Setting>[] = [
  {
    id: "key",
    header: "Setting",
    accessorFn: (row) => row.key,
    cell: ({ row }) => (
      <span>
        <code>{row.original.key}</code>
        <span className="dim block">{oneLine(row.original.description, 240)}</span>
      </span>
    ),
  },
  {
    id: "value",
    header: "In force",
    enableSorting: false,
    cell: ({ row }) => {
      const value = JSON.stringify(row.original.value);
      const usual = JSON.stringify(row.original.default);
      return (
        <span>
          <code className="wrap">{oneLine(value, 200)}</code>
          {value !== usual && <span className="dim block">by default {oneLine(usual, 120)}</span>}
        </span>
      );
    },
  },
  {
    id: "from",
    header: "From",
    accessorFn: (row) => row.source,
    cell: ({ row }) => (
      <span>
        <Badge tone={row.original.source === "default" ? "plain" : "info"}>{row.original.source}</Badge>
        {row.original.where !== null && <span className="dim block wrap">{visible(row.original.where)}</span>}
      </span>
    ),
  },
  { id: "change", header: "A change", accessorFn: (row) => row.needs_restart, cell: ({ row }) => (row.original.needs_restart ? <Badge tone="warn">needs a restart</Badge> : <span className="dim">counts at once</span>) },
];

/** What is in force, and where it stands. */
export function SettingsPage() {
  const asked = useQuery({ ...settingsQuery(), refetchOnMount: "always" });
  const [typed, setTyped] = useState("");
  const [own, setOwn] = useState(false);
  const words = useDeferredValue(typed).toLowerCase();
  const rows = useMemo(
    () => (asked.data?.settings ?? []).filter((one) => (!own || one.source !== "default") && `${one.key} ${one.description}`.toLowerCase().includes(words)),
    [asked.data, own, words],
  );
  return (
    <Page
      title="Settings"
      lead={asked.data !== undefined && (asked.data.folder === null ? "Embedded defaults: no folder of settings was given." : <>Read from <code>{visible(asked.data.folder)}</code>. A change of a file counts as soon as it is saved.</>)}
    >
      <Asked query={asked}>
        {({ problems }) => (
          <>
            {problems.length > 0 && (
              <Card title={`${counted(problems.length, "mistake")} in the files: they are not in force`}>
                <ul>
                  {problems.map((one) => (
                    <li key={one} className="problem">
                      {visible(one)}
                    </li>
                  ))}
                </ul>
              </Card>
            )}
            <Card>
              <div className="filters" role="search">
                <SearchField label="Search settings" value={typed} placeholder="timeout" onChange={setTyped} />
                <label className="check">
                  <input type="checkbox" checked={own} onChange={(event) => setOwn(event.target.checked)} /> only what is set
                </label>
                <span className="dim">{counted(rows.length, "setting")}</span>
              </div>
              <DataTable<Setting>
                label="Settings"
                rows={rows}
                columns={COLUMNS}
                grid="minmax(14rem, 2fr) minmax(10rem, 1.5fr) minmax(8rem, 1fr) 9rem"
                rowKey={(row) => row.key}
                empty={<Empty title={own ? "Everything is as it is by default" : "No setting has this in it"} />}
              />
            </Card>
          </>
        )}
      </Asked>
    </Page>
  );
}
