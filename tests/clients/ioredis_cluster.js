// ioredis as a cluster client on core ports, with reads from primaries and from replicas.
// Needs CORACLE_CORE_PORTS and NODE_PATH; see docs/testing.md.
'use strict';
const assert = require('node:assert/strict');
const { Cluster } = require('ioredis');

const ports = process.env.CORACLE_CORE_PORTS.split(' ').map(Number);
const cases = [];
const test = (name, run) => cases.push([name, run]);

/** Connects through one endpoint, hands the client over, and closes it whatever happens. */
async function withCluster(options, use) {
  const client = new Cluster([{ host: '127.0.0.1', port: ports[0] }], options);
  let last;
  client.on('error', (error) => { last = error; });
  client.on('node error', (error) => { last = error; });
  try {
    await new Promise((resolve, reject) => {
      client.once('ready', resolve);
      setTimeout(() => reject(new Error(`not ready after 10 s: ${last}`)), 10_000).unref();
    });
    await use(client);
  } finally {
    client.disconnect();
  }
}

for (const scaleReads of ['master', 'slave', 'all']) {
  test(`sets and gets with scaleReads=${scaleReads}`, () => withCluster({ scaleReads }, async (client) => {
    for (let i = 0; i < 200; i += 1) {
      assert.equal(await client.set(`io:${i}`, `${scaleReads}${i}`), 'OK');
      assert.equal(await client.get(`io:${i}`), `${scaleReads}${i}`);
    }
  }));
}

test('finds every endpoint as a master', () => withCluster({}, async (client) => {
  await client.get('io:any');
  const seen = client.nodes('master').map((node) => node.options.port).sort();
  assert.deepEqual(seen, [...ports].sort());
}));

test('incr, append, expire, mget of one tag', () => withCluster({}, async (client) => {
  await client.del('{io}n', '{io}s');
  assert.equal(await client.incr('{io}n'), 1);
  assert.equal(await client.append('{io}s', 'abc'), 3);
  assert.equal(await client.expire('{io}s', 100), 1);
  assert.ok((await client.ttl('{io}s')) > 90);
  assert.deepEqual(await client.mget('{io}n', '{io}s', '{io}none'), ['1', 'abc', null]);
}));

test('1,000 writes at once', () => withCluster({}, async (client) => {
  const numbers = [...Array(1000).keys()];
  await Promise.all(numbers.map((i) => client.set(`io:many:${i}`, i)));
  const values = await Promise.all(numbers.map((i) => client.get(`io:many:${i}`)));
  assert.deepEqual(values, numbers.map(String));
}));

/** The keys that all endpoints show together. */
async function scanned(client, options) {
  const keys = new Set();
  for (const node of client.nodes('master')) {
    for await (const some of node.scanStream(options)) some.forEach((key) => keys.add(key));
  }
  return [...keys].sort();
}

test('scanStream over all endpoints', () => withCluster({}, async (client) => {
  const wanted = [...Array(500).keys()].map((i) => `io:scan:${i}`);
  await Promise.all(wanted.map((key) => client.set(key, 'v')));
  for (const count of [5, 100, 5000]) {
    assert.deepEqual(await scanned(client, { match: 'io:scan:*', count }), [...wanted].sort());
  }
}));

test('flushall on every endpoint', () => withCluster({}, async (client) => {
  await client.set('io:flush', 'v');
  const replies = await Promise.all(client.nodes('master').map((node) => node.flushall()));
  assert.ok(replies.every((reply) => reply === 'OK'));
  const sizes = await Promise.all(client.nodes('master').map((node) => node.dbsize()));
  assert.equal(sizes.reduce((sum, size) => sum + size, 0), 0);
  assert.deepEqual(await scanned(client, {}), []);
}));

(async () => {
  let failed = 0;
  for (const [name, run] of cases) {
    try {
      await run();
      console.log(`ok ioredis ${name}`);
    } catch (error) {
      failed = 1;
      console.log(`FAIL ioredis ${name}: ${String(error.message).replace(/\s+/g, ' ')}`);
    }
  }
  process.exit(failed);
})();
