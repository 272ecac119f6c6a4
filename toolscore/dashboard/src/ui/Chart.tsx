import { useEffect, useRef } from "react";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";

export interface Line {
  label: string;
  /** A colour of the theme, without its dashes: `good`. */
  colour: string;
  fill?: boolean;
}

const HEIGHT_PX = 150;

/** Lines over time. `data`: seconds since 1970, then the values of each line. `say`: a value in words. */
export function Chart({
  label,
  lines,
  data,
  say,
}: {
  label: string;
  lines: Line[];
  data: (number | null)[][];
  say: (value: number) => string;
}) {
  const place = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const latest = useRef(data);
  latest.current = data;
  const shape = lines.map((line) => `${line.label}/${line.colour}`).join(" ");

  useEffect(() => {
    const element = place.current;
    if (element === null) return;
    const style = getComputedStyle(document.documentElement);
    const colour = (name: string): string => style.getPropertyValue(`--${name}`).trim();
    const build = (): void => {
      plot.current?.destroy();
      plot.current = new uPlot(
        {
          width: element.clientWidth || 300,
          height: HEIGHT_PX,
          cursor: { y: false, sync: { key: "overview" } },
          legend: { show: true, live: true },
          scales: { y: { range: (_plot, _least, most) => [0, Math.max(most * 1.1, 0.001)] } },
          axes: [
            {
              stroke: colour("dim"),
              grid: { show: false },
              ticks: { show: false },
              font: "11px system-ui",
              values: (_plot, ticks) => ticks.map((at) => clock(at).slice(0, 5)),
            },
            {
              stroke: colour("dim"),
              grid: { stroke: colour("line"), width: 1 },
              ticks: { show: false },
              size: 62,
              font: "11px system-ui",
              values: (_plot, ticks) => ticks.map(say),
            },
          ],
          series: [
            { value: (_plot, at) => (at ? clock(at) : "–") },
            ...lines.map((line) => ({
              label: line.label,
              stroke: colour(line.colour),
              width: 1.5,
              points: { show: false },
              spanGaps: false,
              ...(line.fill ? { fill: `${colour(line.colour)}33` } : {}),
              value: (_plot: uPlot, value: number | null) => (value === null || value === undefined ? "–" : say(value)),
            })),
          ],
        },
        latest.current as uPlot.AlignedData,
        element,
      );
    };
    build();
    const resized = new ResizeObserver(() => {
      plot.current?.setSize({ width: element.clientWidth || 300, height: HEIGHT_PX });
    });
    resized.observe(element);
    const themed = new MutationObserver(build);
    themed.observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
    const dark = matchMedia("(prefers-color-scheme: dark)");
    dark.addEventListener("change", build);
    return () => {
      resized.disconnect();
      themed.disconnect();
      dark.removeEventListener("change", build);
      plot.current?.destroy();
      plot.current = null;
    };
    // eslint-disable-next-line react-hooks/exhaustive-deps
  }, [shape]);

  useEffect(() => {
    plot.current?.setData(data as uPlot.AlignedData);
  }, [data]);

  return <div ref={place} className="chart" role="img" aria-label={label} />;
}

/** The time of day, as the tables write it. */
function clock(seconds: number): string {
  return new Date(seconds * 1000).toLocaleTimeString("en-GB");
}
