// OpenAI's own client for Node: argv are the service's URL and a key; prints an answer, its stream's text and an error.
import OpenAI from "openai"

const [baseURL, apiKey] = process.argv.slice(2)
const client = new OpenAI({ baseURL, apiKey })
const asked = {
  model: "bikeshop",
  messages: [{ role: "user", content: "Do you have a red bike for my niece?" }],
  max_tokens: 16,
  temperature: 0,
}
const whole = await client.chat.completions.create(asked)
let streamed = ""
for await (const chunk of await client.chat.completions.create({ ...asked, stream: true })) {
  streamed += chunk.choices[0]?.delta?.content ?? ""
}
const error = await client.chat.completions.create({ ...asked, model: "ghost" }).catch((e) => e)
const models = []
for await (const model of client.models.list()) models.push(model.id)
const { status, code } = error
console.log(JSON.stringify({ whole: whole.choices[0].message.content, streamed, status, code, models }))
