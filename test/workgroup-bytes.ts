const WIDTHS: Record<string, number> = { vec4u: 16, vec4f: 16, vec2f: 8, f32: 4, u32: 4, "atomic<u32>": 4, f16: 2 };

/** What the workgroup variables of a shader take, its constants put in. */
export function workgroupBytes(code: string): number {
  const constants: Record<string, string> = Object.fromEntries(
    [...code.matchAll(/^const (\w+)[^=\n]*= ([^;\n]+);/gm)].map(([, name, value]) => [name, value]),
  );
  const evaluate = (expression: string): number => {
    const numbers = expression
      .replace(/\b(\d+)u\b/g, "$1")
      .replace(/[A-Za-z_]\w*/g, (name) => String(evaluate(constants[name])));
    return Function(`return Math.floor(${numbers})`)();
  };
  const declared = [...code.matchAll(/^var<workgroup> \w+: (.+?);/gm)].map(([, type]) => type);
  return declared.reduce((sum, type) => {
    const [, element = type, count = "1"] = /^array<(.+), ([^,]+)>$/.exec(type) ?? [];
    return sum + WIDTHS[element] * evaluate(count);
  }, 0);
}
