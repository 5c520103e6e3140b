import type { Reporter, TestCase, TestModule } from "vitest/node";

/** Ends a report with what was not tested here: the suites that were skipped, by name, with the number of their tests. */
export default class SkippedReporter implements Reporter {
  onTestRunEnd(modules: readonly TestModule[]): void {
    const suites = new Map<string, number>();
    let total = 0;
    for (const module of modules) {
      for (const test of module.children.allTests("skipped")) {
        if (!isWanted(test)) continue;
        const name = suiteOf(test);
        suites.set(name, (suites.get(name) ?? 0) + 1);
        total++;
      }
    }
    if (total === 0) return;
    console.log(`Skipped here, ${total} tests:`);
    for (const [name, count] of suites) console.log(`  ${String(count).padStart(4)}  ${name}`);
  }
}

/** Tests that -t leaves out were not asked for. */
function isWanted(test: TestCase): boolean {
  const pattern = test.project.config.testNamePattern;
  return pattern === undefined || pattern.test(test.fullName.replaceAll(" > ", " "));
}

/** The outermost suite, or the test itself where it is in none. */
function suiteOf(test: TestCase): string {
  let name = test.name;
  for (let at = test.parent; at.type === "suite"; at = at.parent) name = at.name;
  return name;
}
