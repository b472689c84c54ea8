// The Anthropic SDK for JavaScript at /v1/messages; its baseURL is the gateway's address without /v1.

import assert from 'node:assert/strict';
import Anthropic from '@anthropic-ai/sdk';
import { betaZodTool } from '@anthropic-ai/sdk/helpers/beta/zod';
import { zodOutputFormat } from '@anthropic-ai/sdk/helpers/zod';
import { z } from 'zod';
import { PNG, given, main, raised } from './cases.mjs';

const Tide = z.object({ place: z.string(), metres: z.number() });
const input_schema = {
  type: 'object',
  properties: { place: { type: 'string' }, hour: { type: 'integer' } },
  required: ['place', 'hour'],
};
const TOOL = { name: 'tide', description: 'The tide at a place.', input_schema };

const open = (other = {}) =>
  new Anthropic({ baseURL: given.root_url, apiKey: given.api_key, maxRetries: 0, timeout: 30_000, ...other });
const client = open();
const about = (content, other = {}) => ({
  model: given.model,
  max_tokens: 256,
  messages: [{ role: 'user', content }],
  ...other,
});
const ask = (content, other) => client.messages.create(about(content, other));

async function refused(expected, status, { tries = 1, content = 'Good morning.', fields = {}, ...options } = {}) {
  const other = open(options);
  const error = await raised(expected, () => other.messages.create(about(content, fields)), tries);
  assert.equal(error.status, status);
  assert.equal(error.error.type, 'error');
  assert.ok(error.error.error.message);
  assert.ok(error.requestID, 'no request-id');
  return error;
}

const cases = {
  async chat() {
    const reply = await ask('Good morning.');
    assert.equal(reply.stop_reason, 'end_turn');
    assert.ok(reply.content[0].text);
    assert.ok(reply.usage.input_tokens > 0 && reply.usage.output_tokens > 0);
  },
  async stream() {
    const whole = (await ask('Good morning.')).content[0].text;
    let told = '';
    for await (const event of await ask('Good morning.', { stream: true })) {
      if (event.type === 'content_block_delta') told += event.delta.text;
    }
    assert.equal(told, whole);
  },
  async stream_helper() {
    let told = '';
    const final = await client.messages
      .stream(about('Good morning.'))
      .on('text', (piece) => (told += piece))
      .finalMessage();
    assert.equal(told, final.content[0].text);
  },
  async stream_usage() {
    const { usage } = await client.messages.stream(about('Good morning.')).finalMessage();
    const whole = (await ask('Good morning.')).usage;
    assert.deepEqual([usage.input_tokens, usage.output_tokens], [whole.input_tokens, whole.output_tokens]);
  },
  async tools() {
    const reply = await ask('How high is the tide?', { tools: [TOOL] });
    assert.equal(reply.stop_reason, 'tool_use');
    const call = reply.content.find((block) => block.type === 'tool_use');
    assert.ok(Number.isInteger(call.input.hour));
    const result = { type: 'tool_result', tool_use_id: call.id, content: '{"metres": 2.5}' };
    const messages = [
      ...about('How high is the tide?').messages,
      { role: 'assistant', content: reply.content },
      { role: 'user', content: [result] },
    ];
    assert.ok((await ask('', { messages, tools: [TOOL] })).content[0].text);
  },
  async tools_streamed() {
    const final = await client.messages.stream(about('How high is the tide?', { tools: [TOOL] })).finalMessage();
    assert.equal(typeof final.content.find((block) => block.type === 'tool_use').input.place, 'string');
  },
  async tool_runner() {
    const asked = [];
    const run = (args) => (asked.push(args), '{"metres": 2.5}');
    const inputSchema = z.object({ place: z.string(), hour: z.number().int() });
    const tool = betaZodTool({ name: 'tide', description: 'The tide at a place.', inputSchema, run });
    const final = await client.beta.messages.toolRunner(about('How high is the tide?', { tools: [tool] }));
    assert.equal(asked.length, 1);
    assert.ok(final.content[0].text);
  },
  async image() {
    const picture = { type: 'image', source: { type: 'base64', media_type: 'image/png', data: PNG } };
    const messages = [{ role: 'user', content: [picture, { type: 'text', text: 'What is this?' }] }];
    assert.ok((await ask('', { messages })).content[0].text);
  },
  async structured() {
    const asked = about('The tide, please.', { output_config: { format: zodOutputFormat(Tide) } });
    const { parsed_output } = await client.messages.parse(asked);
    assert.ok(Tide.safeParse(parsed_output).success, JSON.stringify(parsed_output));
  },
  async count_tokens() {
    const { max_tokens, ...asked } = about('Good morning.');
    const { input_tokens } = await client.messages.countTokens(asked);
    assert.equal(input_tokens, (await ask('Good morning.')).usage.input_tokens);
  },
  async models() {
    const ids = [];
    for await (const model of client.models.list()) ids.push(model.id);
    assert.ok(ids.includes(given.model));
    assert.ok(!ids.includes(given.hidden_model));
  },
  async headers() {
    const { data, response, request_id } = await client.messages.create(about('Good morning.')).withResponse();
    assert.ok(data.content[0].text);
    assert.ok(request_id);
    assert.equal(response.headers.get('request-id'), request_id);
  },
  async penstock_headers() {
    const response = await client.messages.create(about('Good morning.')).asResponse();
    assert.equal(response.headers.get('x-penstock-model'), given.model);
    assert.ok(Number(response.headers.get('x-penstock-cost-usd')) >= 0);
  },
  async hints() {
    assert.ok((await ask('Good morning.', { penstock: { tags: ['clients'] } })).content[0].text);
    await refused(Anthropic.PermissionDeniedError, 403, { fields: { penstock: { data_class: 'restricted' } } });
  },
  async beta_helpers() {
    const asked = about('Good morning.', { betas: ['no-such-beta-2026-01-01'] });
    const { data, response } = await client.beta.messages.create(asked).withResponse();
    assert.ok(data.content[0].text);
    assert.match(response.headers.get('x-penstock-dropped'), /no-such-beta-2026-01-01/);
  },
  error_400: () => refused(Anthropic.BadRequestError, 400, { fields: { messages: [] } }),
  error_401: () => refused(Anthropic.AuthenticationError, 401, { apiKey: given.wrong_key }),
  error_402: () => refused(Anthropic.APIError, 402, { apiKey: given.broke_key, maxRetries: 2 }),
  error_403: () => refused(Anthropic.PermissionDeniedError, 403, { fields: { model: given.forbidden_model } }),
  error_404: () => refused(Anthropic.NotFoundError, 404, { fields: { model: given.missing_model } }),
  error_429: () => refused(Anthropic.RateLimitError, 429, { apiKey: given.limited_key, tries: 3 }),
  async error_mid_stream() {
    const told = [];
    const error = await raised(Anthropic.APIError, async () => {
      for await (const event of await ask(given.cut_message, { stream: true })) told.push(event.type);
    });
    assert.equal(told[0], 'message_start');
    assert.ok(error.message);
  },
  async retry() {
    const other = open({ apiKey: given.retry_key, maxRetries: 2 });
    const reply = await other.messages.create(about(given.once_message, { model: given.flaky_model }));
    assert.ok(reply.content[0].text);
  },
  no_retry: () =>
    refused(Anthropic.InternalServerError, 502, {
      content: given.perhaps_billed_message,
      apiKey: given.still_key,
      maxRetries: 2,
    }),
  async timeout() {
    const other = open({ timeout: 1000, apiKey: given.timeout_key });
    await raised(Anthropic.APIConnectionTimeoutError, () => other.messages.create(about(given.slow_message)));
  },
  async cancel() {
    const stream = open({ apiKey: given.cancel_key }).messages.stream(about(given.long_message));
    const gone = raised(Anthropic.APIUserAbortError, () => stream.finalMessage());
    let seen = 0;
    stream.on('text', () => ++seen === 3 && stream.abort());
    await gone;
  },
};

await main('anthropic (npm)', '@anthropic-ai/sdk', cases, () => ask('Good morning.'));
