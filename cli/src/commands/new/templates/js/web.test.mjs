import assert from 'node:assert/strict';
import test from 'node:test';

test('the answer names the path', async () => {
  let listener;
  globalThis.addEventListener = (_, called) => { listener = called; };
  await import('./web.js');
  let response;
  listener({ request: new Request('http://localhost/door'), respondWith: (given) => { response = given; } });
  assert.equal(await (await response).text(), 'hello from {{name}} at /door\n');
});
