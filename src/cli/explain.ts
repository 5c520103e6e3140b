const SENTENCES: Record<string, string> = {
  EFBIG: "the file would be larger than is allowed here; what was saved before is as it was",
  ENOSPC: "the disk is full; what was saved before is as it was",
  EACCES: "permission is denied",
  EPERM: "permission is denied",
  EROFS: "the file system is read-only",
  EISDIR: "a file is needed, not a folder",
  ENOTDIR: "a folder is needed, not a file",
  ENOENT: "there is no such file or folder",
  EMFILE: "too many files are open",
};

/** An error as one sentence for people; its stack too where POWER_ATTENTION_DEBUG is set. */
export function explain(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const { code, path } = error as NodeJS.ErrnoException;
  const sentence = code === undefined ? undefined : SENTENCES[code];
  const text = sentence ? `${sentence}${path === undefined ? "" : `: ${path}`}` : error.message;
  return process.env.POWER_ATTENTION_DEBUG ? `${text}\n${error.stack}` : text;
}
