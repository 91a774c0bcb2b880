/**
 * What can be asked about a story, and when an answer is right: the names and
 * the rules are those of `minimind_core/microworld/tasks.py`.
 */

import { readStory } from "./world.js";

/** @typedef {import("./world.js").Language} Language */
/** @typedef {import("./world.js").State} State */

/**
 * @typedef {object} Question
 * @property {string} kind
 * @property {string} question
 * @property {string} answer The right one, where there is just one.
 */

/**
 * Every question that can be asked about a story.
 * @param {State} state
 * @param {Language} language
 * @returns {Question[]}
 */
export function questionsAbout(state, language) {
  const { questions, world } = language;
  /** @type {Question[]} */
  const found = [];
  /** @type {(kind: string, template: string, known: State) => void} */
  const add = (kind, template, known) => {
    const [question, answer] = questions[template].map((text) =>
      language.fill(text, { ...state, ...known }),
    );
    if (found.every((one) => one.question !== question)) {
      found.push({ kind, question, answer });
    }
  };
  for (const [kind, ways] of Object.entries(world.asked)) {
    for (const { plots, known = {} } of ways) {
      if (plots && !plots.includes(state.plot)) continue;
      const given = Object.entries(known).map(([role, source]) => [
        role, state[source] ?? source,
      ]);
      add(kind, kind, Object.fromEntries(given));
    }
  }
  for (const absent of strangers(state, language)) {
    for (const name of ["unknown1", "unknown2", "unknown3"]) {
      add("unknown", name, { absent });
    }
  }
  return found;
}

/**
 * Everybody who is not in a story.
 * @param {State} state
 * @param {Language} language
 */
export function strangers(state, { world }) {
  const present = world.present.map((role) => state[role]);
  const everybody = world.options("hero", {}).keys;
  return everybody.filter((key) => !present.includes(key));
}

/**
 * Find what was asked, with or without the greeting of the new skill, and
 * what has to be answered to it.
 * @param {string} question To the letter.
 * @param {State} state
 * @param {Language} language
 * @returns {Question | undefined}
 */
export function findQuestion(question, state, language) {
  const { greeting, manner, questions } = language;
  const greeted = greeting.split("{}")[0];
  if (greeted && question.startsWith(greeted)) {
    const plain = question.slice(greeted.length);
    const [who, narrator] = questions.who;
    const found = plain === who
      ? { answer: narrator }
      : findQuestion(plain, state, language);
    const answer = found && manner.replace("{}", found.answer);
    return answer ? { kind: "skill", question, answer } : undefined;
  }
  return questionsAbout(state, language).find(
    (one) => one.question === question,
  );
}

/**
 * Whether an answer is right. A story that was asked for may be any about
 * that person, place and weather, and one that was begun may go on in any
 * way; all other answers are checked to the letter.
 * @param {Question} asked
 * @param {string} said
 * @param {{text: string, state: State}} story What it is about; to be
 *   continued, only its beginning.
 * @param {Language} language
 */
export function checkAnswer({ kind, answer }, said, story, language) {
  if (kind === "retell") return said === story.text;
  if (kind !== "write" && kind !== "continue") return said === answer;
  const told = kind === "write" ? said : story.text + said;
  const { left, state } = readStory(told, language);
  return left === null && ["hero", "place", "weather"].every(
    (role) => state[role] === story.state[role],
  );
}
