import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["src/**/*.test.ts", "test/**/*.test.ts"],
    globalSetup: "test/build.ts",
    reporters: ["default", "./test/skipped-reporter.ts"],
    pool: "forks",
    // A GPU made of software compiles some kernels for minutes, the first time and where the machine is slow.
    testTimeout: 300_000,
    // Tests run with the table's tiles, whatever was tuned on the machine.
    env: { POWER_ATTENTION_TILES: "" },
    // Two cores: each test file may start its own worker threads.
    maxWorkers: 2,
  },
});
