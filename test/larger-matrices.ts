/*
 * A GPU whose matrix units are 8×8×8 and whose subgroups have 8 invocations plays one with 16×16×16 and subgroups of 32: a
 * matrix becomes four (or two) small ones, and the four real subgroups of a pretended one all do the same. Only for kernels
 * whose invocations meet nowhere but at barriers and in matrices.
 */

/** What the adapter is to say. */
export const LARGER = {
  subgroupMatrixConfigs: [
    { M: 16, N: 16, K: 16, componentType: "f16", resultComponentType: "f32" },
    { M: 16, N: 8, K: 16, componentType: "f16", resultComponentType: "f32" },
  ],
  subgroupMinSize: 32,
  subgroupMaxSize: 32,
};

/** How many elements of an array eight neighbouring columns take. */
const EIGHT_COLUMNS: Record<string, number> = { vec4u: 1, vec4f: 2, f32: 8 };

/** Small matrices down and across. */
const SHAPES: Record<string, readonly [down: number, across: number, small: string]> = {
  Left: [2, 2, "Left8x8"],
  Right16: [2, 2, "Right8x8"],
  Right8: [2, 1, "Right8x8"],
  Result16: [2, 2, "Result8x8"],
  Result8: [2, 1, "Result8x8"],
};

/** Arguments of a call whose opening parenthesis is at `open`, and where it ends. */
function argumentsAt(code: string, open: number): { all: string[]; end: number } {
  const all: string[] = [];
  let depth = 0;
  let start = open + 1;
  for (let at = open; ; at++) {
    if ("([".includes(code[at])) depth++;
    if (")]".includes(code[at])) depth--;
    if (depth === 0 || (depth === 1 && code[at] === ",")) {
      all.push(code.slice(start, at).trim());
      start = at + 1;
    }
    if (depth === 0) return { all, end: at + 1 };
  }
}

/** WGSL with each call of `name` replaced, whose template arguments come first. */
function replaceCalls(
  code: string,
  name: string,
  text: (templates: string[], args: string[], before: string) => string,
) {
  let done = "";
  let rest = code;
  for (let at = rest.indexOf(name); at >= 0; at = rest.indexOf(name)) {
    const open = rest.indexOf("(", at);
    const templates =
      /<(.*)>/
        .exec(rest.slice(at, open))?.[1]
        .split(",")
        .map((word) => word.trim()) ?? [];
    const { all, end } = argumentsAt(rest, open);
    done += rest.slice(0, at);
    done += text(templates, all, done);
    rest = rest.slice(end);
  }
  return done + rest;
}

const multiply = (width: 16 | 8) => {
  const across = width / 8;
  const lines = [0, 1].flatMap((i) =>
    Array.from({ length: across }, (_, j) => {
      const sum = `d[${i * across + j}]`;
      const step = (k: number) => `${sum} = multiply_small(l[${2 * i + k}], r[${k * across + j}], ${sum});`;
      return step(0) + step(1);
    }),
  );
  return `fn multiply_${width}(l: Left, r: Right${width}, sum: Result${width}) -> Result${width} {
  var d = sum;
  ${lines.join("\n  ")}
  return d;
}`;
};

/** A shader for matrices of 16×16×16 and 16×8×16 as one for 8×8×8. */
export function withSmallMatrices(code: string): string {
  if (!code.includes("alias Left = subgroup_matrix_left")) return code;
  const eight = (array: string) => {
    const name = array.replace("&", "");
    return EIGHT_COLUMNS[new RegExp(`\\b${name}: array<(\\w+)`).exec(code)![1]];
  };
  const places = (type: string, array: string, offset: string, stride: string, columnsFirst = false) => {
    const [down, across] = SHAPES[type];
    return Array.from({ length: down * across }, (_, n) => {
      const [i, j] = [Math.floor(n / across), n % across];
      const [far, near] = columnsFirst ? [j, i] : [i, j];
      return `${offset} + ${8 * far}u * ${stride} + ${near * eight(array)}u`;
    });
  };
  const typeOf = (value: string, before: string) =>
    [...before.matchAll(new RegExp(`\\bvar ${value}(?::| =) (Result\\d+)`, "g"))].at(-1)![1];
  const aliases = Object.entries(SHAPES).map(
    ([name, [down, across, small]]) => `alias ${name} = array<${small}, ${down * across}>;`,
  );
  const [directives] = /^([\s\S]*?)(?=alias Left)/.exec(code)!;
  let body = code.slice(directives.length).replace(/^alias (Left|Right\d+|Result\d+) = .*;$/gm, "");
  body = replaceCalls(body, "subgroupMatrixLoad", ([type, order], [array, offset, stride]) => {
    const loads = places(type, array, offset, stride, order === "col_major").map(
      (at) => `subgroupMatrixRead<${SHAPES[type][2]}, ${order}>(${array}, ${at}, ${stride})`,
    );
    return `${type}(${loads.join(", ")})`;
  });
  body = replaceCalls(body, "subgroupMatrixStore", ([order], [array, offset, value, stride], before) =>
    places(typeOf(value, before), array, offset, stride)
      .map((at, n) => `subgroupMatrixWrite<${order}>(${array}, ${at}, ${value}[${n}], ${stride})`)
      .join("; "),
  );
  body = replaceCalls(body, "subgroupMatrixMultiplyAccumulate", (_, [left, right, sum], before) => {
    const width = typeOf(sum, before).replace("Result", "");
    return `multiply_${width}(${left}, ${right}, ${sum})`;
  });
  return `${directives}
alias Left8x8 = subgroup_matrix_left<f16, 8, 8>;
alias Right8x8 = subgroup_matrix_right<f16, 8, 8>;
alias Result8x8 = subgroup_matrix_result<f32, 8, 8>;
${aliases.join("\n")}
${[16, 8].map((width) => multiply(width as 16 | 8)).join("\n")}
${body}`
    .replaceAll("multiply_small", "subgroupMatrixMultiplyAccumulate")
    .replaceAll("subgroupMatrixRead", "subgroupMatrixLoad")
    .replaceAll("subgroupMatrixWrite", "subgroupMatrixStore");
}
