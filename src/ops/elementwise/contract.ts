/** Operations of one tensor, each element on its own. */
export type UnaryName =
  | "neg"
  | "exp"
  | "log"
  | "sqrt"
  | "abs"
  | "square"
  | "tanh"
  | "sigmoid"
  | "logSigmoid"
  | "relu"
  | "gelu"
  | "silu";

/** Operations of two tensors that broadcast; `equal` gives 1 or 0. */
export type BinaryName = "add" | "sub" | "mul" | "div" | "equal";

/** What a gradient kernel reads beside the upstream gradient: the operation's input or its output. */
export const savedForGrad = {
  sqrt: "output",
  abs: "input",
  square: "input",
  tanh: "output",
  sigmoid: "output",
  logSigmoid: "input",
  relu: "input",
  gelu: "input",
  silu: "input",
} as const satisfies Partial<Record<UnaryName, "input" | "output">>;

export type GradName = keyof typeof savedForGrad;
