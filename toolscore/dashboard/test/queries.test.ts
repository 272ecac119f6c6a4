import { QueryObserver } from "@tanstack/react-query";
import { afterEach, describe, expect, it } from "vitest";
import { queryClient } from "../src/api/queries";

afterEach(() => queryClient.clear());

/** A query that somebody looks at, whose answers come when the test gives them. */
function asked(key: string): { answers: ((value: number) => void)[]; shown: () => number | undefined; stop: () => void } {
  const answers: ((value: number) => void)[] = [];
  const observer = new QueryObserver<number>(queryClient, { queryKey: [key], queryFn: () => new Promise((done) => answers.push(done)) });
  const stop = observer.subscribe(() => undefined);
  return { answers, shown: () => observer.getCurrentResult().data, stop };
}

const turn = (): Promise<void> => new Promise((done) => setTimeout(done, 5));

describe("queryClient", () => {
  it("asks again for a first answer that was on its way when it became old", async () => {
    const one = asked("keys");
    const other = asked("tools");
    void queryClient.invalidateQueries({ queryKey: ["keys"] });
    await turn();
    expect(one.answers.length).toBe(1);
    one.answers[0]?.(1);
    other.answers[0]?.(1);
    await turn();
    expect([one.answers.length, other.answers.length, one.shown()]).toEqual([2, 1, 1]);
    one.answers[1]?.(2);
    await turn();
    expect([one.answers.length, one.shown()]).toEqual([2, 2]);
    one.stop();
    other.stop();
  });

  it("asks once more for what has an answer", async () => {
    const one = asked("keys");
    one.answers[0]?.(1);
    await turn();
    void queryClient.invalidateQueries({ queryKey: ["keys"] });
    await turn();
    one.answers[1]?.(2);
    await turn();
    expect([one.answers.length, one.shown()]).toEqual([2, 2]);
    one.stop();
  });
});
