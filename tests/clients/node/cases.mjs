// How the cases of a JavaScript client are told, run and reported: as cases.py, one JSON line per case.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';

// One pixel.
export const PNG =
  'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==';

export const given = JSON.parse(readFileSync(process.argv[2], 'utf8'));

// The error of this class that one of so many tries must end in; any other passes through.
export async function raised(expected, attempt, tries = 1) {
  for (let n = 0; n < tries; n++) {
    try {
      await attempt();
    } catch (error) {
      if (!(error instanceof expected)) throw error;
      return error;
    }
  }
  assert.fail(`no ${expected.name}`);
}

// Run what `given.only` names, all if it names nothing. calm: one plain call before each, for a gateway lets a target
// rest that failed too often in a row, and the cases make it fail.
export async function main(client, name, cases, calm) {
  const { version } = JSON.parse(readFileSync(new URL(`./node_modules/${name}/package.json`, import.meta.url), 'utf8'));
  let failed = 0;
  for (const [title, check] of Object.entries(cases)) {
    if (given.only.length && !given.only.includes(title)) continue;
    await calm().catch(() => undefined);
    let detail = '';
    try {
      await check();
    } catch (error) {
      detail = `${error?.constructor?.name}: ${error?.message}`;
      failed += 1;
    }
    console.log(JSON.stringify({ client, version, case: title, ok: !detail, detail }));
  }
  process.exitCode = failed ? 1 : 0;
}
