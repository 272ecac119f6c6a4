import {
  createSortedRowModel,
  rowSortingFeature,
  sortFn_alphanumeric,
  sortFn_basic,
  tableFeatures,
  useTable,
  type RowData,
  type ColumnDef as TableColumn,
} from "@tanstack/react-table";
import { useVirtualizer } from "@tanstack/react-virtual";
import { useEffect, useRef, type ReactNode } from "react";

const features = tableFeatures({
  rowSortingFeature,
  sortedRowModel: createSortedRowModel(),
  sortFns: { alphanumeric: sortFn_alphanumeric, basic: sortFn_basic },
});

export type ColumnDef<Row extends RowData> = TableColumn<typeof features, Row, unknown>;

const ROW_PX = 44;
const NEAR_THE_END = 10;

/**
 * A table of any length: only the rows in sight are in the page. `grid`: the columns' widths, as CSS grid has them.
 * A narrow screen shows each row as a card, with the columns' names.
 */
export function DataTable<Row extends RowData>({
  label,
  rows,
  columns,
  grid,
  rowKey,
  empty,
  onEnd,
  more = false,
  sortable = true,
  height = "fit",
}: {
  label: string;
  rows: Row[];
  columns: ColumnDef<Row>[];
  grid: string;
  rowKey: (row: Row) => string;
  empty: ReactNode;
  /** Called when the end comes into sight. */
  onEnd?: (() => void) | undefined;
  more?: boolean;
  sortable?: boolean;
  height?: "fit" | "short";
}) {
  const scroller = useRef<HTMLDivElement>(null);
  const table = useTable({ features, data: rows, columns, getRowId: rowKey, enableSorting: sortable });
  const shown = table.getRowModel().rows;
  const virtual = useVirtualizer({
    count: shown.length,
    getScrollElement: () => scroller.current,
    estimateSize: () => ROW_PX,
    getItemKey: (index) => shown[index]?.id ?? index,
    overscan: 12,
  });
  const items = virtual.getVirtualItems();
  const last = items.at(-1)?.index ?? 0;
  useEffect(() => {
    if (onEnd !== undefined && more && last >= shown.length - NEAR_THE_END) onEnd();
  }, [last, shown.length, more, onEnd]);

  if (rows.length === 0) return <>{empty}</>;
  return (
    <div ref={scroller} className={`table ${height}`} tabIndex={0} role="region" aria-label={label}>
      <div role="table" aria-label={label} aria-rowcount={shown.length + 1}>
        <div role="rowgroup" className="table-head">
          {table.getHeaderGroups().map((group) => (
            <div role="row" key={group.id} className="table-row" ref={(element) => void element?.style.setProperty("--grid", grid)}>
              {group.headers.map((header) => {
                const sorted = header.column.getIsSorted();
                return (
                  <div
                    role="columnheader"
                    key={header.id}
                    aria-sort={sorted === false ? "none" : sorted === "asc" ? "ascending" : "descending"}
                  >
                    {header.column.getCanSort() ? (
                      <button type="button" className="sort" onClick={header.column.getToggleSortingHandler()}>
                        <table.FlexRender header={header} />
                        <span aria-hidden>{sorted === "asc" ? " ↑" : sorted === "desc" ? " ↓" : ""}</span>
                      </button>
                    ) : (
                      <table.FlexRender header={header} />
                    )}
                  </div>
                );
              })}
            </div>
          ))}
        </div>
        <div role="rowgroup" className="table-body" ref={(element) => void element?.style.setProperty("height", `${virtual.getTotalSize()}px`)}>
          {items.map((item) => {
            const row = shown[item.index];
            if (row === undefined) return null;
            return (
              <div
                role="row"
                key={row.id}
                data-index={item.index}
                aria-rowindex={item.index + 2}
                className="table-row"
                ref={(element) => {
                  if (element === null) return;
                  element.style.setProperty("--grid", grid);
                  element.style.transform = `translateY(${item.start}px)`;
                  virtual.measureElement(element);
                }}
              >
                {row.getAllCells().map((cell) => (
                  <div role="cell" key={cell.id} data-column={String(cell.column.columnDef.header ?? "")}>
                    <table.FlexRender cell={cell} />
                  </div>
                ))}
              </div>
            );
          })}
        </div>
      </div>
    </div>
  );
}
