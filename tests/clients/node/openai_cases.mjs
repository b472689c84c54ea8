// The OpenAI SDK for JavaScript.

import assert from 'node:assert/strict';
import OpenAI from 'openai';
import { zodResponseFormat } from 'openai/helpers/zod';
import { z } from 'zod';
import { PNG, given, main, raised } from './cases.mjs';

const Tide = z.object({ place: z.string(), metres: z.number() });
const parameters = {
  type: 'object',
  properties: { place: { type: 'string' }, hour: { type: 'integer' } },
  required: ['place', 'hour'],
  additionalProperties: false,
};
const TOOL = { type: 'function', function: { name: 'tide', description: 'The tide at a place.', parameters } };

const open = (other = {}) =>
  new OpenAI({ baseURL: given.base_url, apiKey: given.api_key, maxRetries: 0, timeout: 30_000, ...other });
const client = open();
const about = (content, other = {}) => ({ model: given.model, messages: [{ role: 'user', content }], ...other });
const ask = (content, other) => client.chat.completions.create(about(content, other));
const text = (chunks) => chunks.flatMap((chunk) => chunk.choices.map((choice) => choice.delta.content ?? '')).join('');

async function collected(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

async function refused(expected, status, { tries = 1, content = 'Good morning.', fields = {}, ...options } = {}) {
  const other = open(options);
  const error = await raised(expected, () => other.chat.completions.create(about(content, fields)), tries);
  assert.equal(error.status, status);
  for (const key of ['message', 'type', 'param', 'code']) assert.ok(key in error.error, `error has no ${key}`);
  assert.ok(error.requestID, 'no x-request-id');
  return error;
}

const cases = {
  async chat() {
    const reply = await ask('Good morning.');
    assert.ok(reply.choices[0].message.content);
    assert.equal(reply.choices[0].finish_reason, 'stop');
    assert.equal(reply.usage.total_tokens, reply.usage.prompt_tokens + reply.usage.completion_tokens);
  },
  async stream() {
    const whole = (await ask('Good morning.')).choices[0].message.content;
    assert.equal(text(await collected(await ask('Good morning.', { stream: true }))), whole);
  },
  async stream_helper() {
    const final = await client.chat.completions.stream(about('Good morning.')).finalChatCompletion();
    assert.ok(final.choices[0].message.content);
  },
  async stream_usage() {
    const asked = { stream: true, stream_options: { include_usage: true } };
    const told = (await collected(await ask('Good morning.', asked))).filter((chunk) => chunk.usage);
    assert.equal(told.length, 1);
    assert.deepEqual(told[0].usage.completion_tokens, (await ask('Good morning.')).usage.completion_tokens);
  },
  async tools() {
    const { message, finish_reason } = (await ask('How high is the tide?', { tools: [TOOL] })).choices[0];
    assert.equal(finish_reason, 'tool_calls');
    const call = message.tool_calls[0];
    assert.ok(Number.isInteger(JSON.parse(call.function.arguments).hour));
    const answer = { role: 'tool', tool_call_id: call.id, content: '{"metres": 2.5}' };
    const messages = [...about('How high is the tide?').messages, message, answer];
    const final = await client.chat.completions.create({ model: given.model, messages, tools: [TOOL] });
    assert.ok(final.choices[0].message.content);
  },
  async tools_streamed() {
    const stream = client.chat.completions.stream(about('How high is the tide?', { tools: [TOOL] }));
    const call = (await stream.finalChatCompletion()).choices[0].message.tool_calls[0];
    assert.equal(typeof JSON.parse(call.function.arguments).place, 'string');
  },
  async tool_runner() {
    const asked = [];
    const tide = (args) => (asked.push(args), '{"metres": 2.5}');
    const tool = { type: 'function', function: { ...TOOL.function, function: tide, parse: JSON.parse } };
    const runner = client.chat.completions.runTools(about('How high is the tide?', { tools: [tool] }));
    assert.ok(await runner.finalContent());
    assert.equal(asked.length, 1);
  },
  async structured() {
    const asked = about('The tide, please.', { response_format: zodResponseFormat(Tide, 'tide') });
    const { parsed } = (await client.chat.completions.parse(asked)).choices[0].message;
    assert.ok(Tide.safeParse(parsed).success, JSON.stringify(parsed));
  },
  async image() {
    const picture = { type: 'image_url', image_url: { url: `data:image/png;base64,${PNG}` } };
    const messages = [{ role: 'user', content: [{ type: 'text', text: 'What is this?' }, picture] }];
    assert.ok((await ask('', { messages })).choices[0].message.content);
  },
  async embeddings() {
    const input = ['The tide is low.', 'The gate is open.'];
    const found = await client.embeddings.create({ model: given.embedding_model, input });
    assert.deepEqual(found.data.map((each) => each.index), [0, 1]);
    assert.ok(found.data.every((each) => each.embedding.every(Number.isFinite)));
    assert.ok(found.usage.total_tokens > 0);
  },
  async models() {
    const ids = (await collected(await client.models.list())).map((model) => model.id);
    assert.ok(ids.includes(given.model));
    assert.ok(!ids.includes(given.hidden_model));
  },
  async headers() {
    const { data, response, request_id } = await client.chat.completions.create(about('Good morning.')).withResponse();
    assert.ok(data.choices[0].message.content);
    assert.ok(request_id);
    assert.equal(response.headers.get('x-request-id'), request_id);
  },
  async penstock_headers() {
    const response = await client.chat.completions.create(about('Good morning.')).asResponse();
    assert.equal(response.headers.get('x-penstock-model'), given.model);
    assert.ok(Number(response.headers.get('x-penstock-cost-usd')) >= 0);
  },
  async hints() {
    assert.ok((await ask('Good morning.', { penstock: { tags: ['clients'] } })).choices[0].message.content);
    const fields = { penstock: { data_class: 'restricted' } };
    const error = await refused(OpenAI.PermissionDeniedError, 403, { fields });
    assert.equal(error.code, 'policy_denied');
  },
  error_400: () => refused(OpenAI.BadRequestError, 400, { fields: { messages: [] } }),
  error_401: () => refused(OpenAI.AuthenticationError, 401, { apiKey: given.wrong_key }),
  error_402: () => refused(OpenAI.APIError, 402, { apiKey: given.broke_key, maxRetries: 2 }),
  error_403: () => refused(OpenAI.PermissionDeniedError, 403, { fields: { model: given.forbidden_model } }),
  error_404: () => refused(OpenAI.NotFoundError, 404, { fields: { model: given.missing_model } }),
  error_429: () => refused(OpenAI.RateLimitError, 429, { apiKey: given.limited_key, tries: 3 }),
  async error_mid_stream() {
    const told = [];
    const error = await raised(OpenAI.APIError, async () => {
      for await (const chunk of await ask(given.cut_message, { stream: true })) told.push(chunk);
    });
    assert.ok(text(told), 'nothing came before the error');
    assert.ok(error.message);
  },
  async retry() {
    const other = open({ apiKey: given.retry_key, maxRetries: 2 });
    const reply = await other.chat.completions.create(about(given.once_message, { model: given.flaky_model }));
    assert.ok(reply.choices[0].message.content);
  },
  no_retry: () =>
    refused(OpenAI.InternalServerError, 502, {
      content: given.perhaps_billed_message,
      apiKey: given.still_key,
      maxRetries: 2,
    }),
  async timeout() {
    const other = open({ timeout: 1000, apiKey: given.timeout_key });
    await raised(OpenAI.APIConnectionTimeoutError, () => other.chat.completions.create(about(given.slow_message)));
  },
  async cancel() {
    const other = open({ apiKey: given.cancel_key });
    const stream = await other.chat.completions.create(about(given.long_message, { stream: true }));
    let seen = 0;
    for await (const _ of stream) if (++seen === 3) break;
    assert.equal(seen, 3);
  },
};

await main('openai (npm)', 'openai', cases, () => ask('Good morning.'));
