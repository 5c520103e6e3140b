#!/usr/bin/env bash
# A GPU made of software, for machines that have none: Mesa's lavapipe (Vulkan on the CPU, subgroup matrices included)
# and a copy of node that can load it, unpacked into a cache folder. Nothing on the system changes; root is not needed.
#
#   scripts/software-gpu.sh COMMAND …     runs the command with `node` being that copy and Vulkan finding lavapipe
#   scripts/software-gpu.sh               sets it up and prints the exports that do the same:
#                                         eval "$(scripts/software-gpu.sh)"
#
# For Debian on x86-64 or arm64. The packages come from the mirror that the machine's own apt sources name, from the
# suites below: the stable release's own Mesa has no subgroup matrices. They need a newer C library than older releases
# have, so it comes along, and the copy of node is patched to load it.
# SOFTWARE_GPU_CACHE names another folder than .cache/software-gpu. About 70 MB are downloaded and 500 MB kept, once.
set -euo pipefail

suite=trixie
backports=$suite-backports
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${SOFTWARE_GPU_CACHE:-$project/.cache/software-gpu}
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
root=$cache/root
node=$(readlink -f "$(command -v node)")
triplet=$(uname -m)-linux-gnu
libraries=$root/usr/lib/$triplet

fail() {
  echo "software-gpu: $*" >&2
  exit 1
}

# The mirror of the machine's apt sources, deb822 files or one-line files, that has Debian's main archive.
mirror() {
  {
    { cat /etc/apt/sources.list.d/*.sources 2>/dev/null || true; } | awk '
      /^Suites:/ { for (i = 2; i <= NF; i++) suites = suites " " $i }
      /^URIs:/ { uri = $2 }
      /^Components:/ { main = / main( |$)/ }
      /^[[:space:]]*$/ { print_it() }
      END { print_it() }
      function print_it() { if (uri && main) print uri; uri = ""; main = 0 }'
    { cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null || true; } |
      sed -nE 's/^deb +(\[[^]]*\] +)?([^ ]+) +[^ ]+ .*\bmain\b.*/\2/p'
  } | while read -r uri; do
    case $uri in
      *security* | *updates*) ;;
      */debian | */debian/) echo "${uri%/}" && break ;;
    esac
  done
}

unpack() {
  [ -f /etc/debian_version ] || fail "this script knows Debian only; elsewhere install Mesa 26.1 or newer and set VK_ICD_FILENAMES"
  local uri keyring apt=$cache/apt
  uri=$(mirror)
  [ -n "$uri" ] || fail "no Debian mirror found in /etc/apt; add one to the apt sources"
  keyring=/usr/share/keyrings/debian-archive-keyring.gpg
  [ -f "$keyring" ] || fail "$keyring is missing; install debian-archive-keyring"
  # An apt of its own, which believes that nothing is installed.
  mkdir -p "$apt"/lists/partial "$apt"/cache/archives/partial "$apt"/dpkg
  : > "$apt/dpkg/status"
  printf "deb [signed-by=$keyring] $uri %s main\n" "$suite" "$backports" > "$apt/sources.list"
  local options=(-o Dir::Etc::SourceList="$apt/sources.list" -o Dir::Etc::SourceParts=/dev/null
    -o Dir::State::Lists="$apt/lists" -o Dir::State::Status="$apt/dpkg/status" -o Dir::Cache="$apt/cache"
    -o APT::Sandbox::User="$(id -un)" -o Debug::NoLocking=1
    -o Acquire::Retries=1 -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20 -qq -y)
  apt-get "${options[@]}" update
  apt-get "${options[@]}" -d --no-install-recommends install "mesa-vulkan-drivers/$backports" libvulkan1 patchelf
  rm -rf "$root.new"
  mkdir "$root.new"
  for deb in "$apt"/cache/archives/*.deb; do dpkg -x "$deb" "$root.new"; done
  rm -rf "$root" "$apt"
  mv "$root.new" "$root"
}

# Set up once; a second caller at the same time waits for the first.
set_up() {
  exec 9> "$cache/lock"
  flock 9
  if [ ! -d "$root" ]; then
    echo "software-gpu: unpacking Mesa into $cache (once, about 70 MB to download)" >&2
    unpack >&2
  fi
  local loader description=$root/usr/share/vulkan/icd.d
  loader=$(find "$libraries/" -name 'ld-linux-*.so.*' | head -n 1)
  description=$(find "$description/" -name 'lvp_icd*.json' ! -name '*.absolute.json' | head -n 1)
  [ -n "$loader" ] && [ -n "$description" ] || fail "$root is incomplete; delete $cache and run again"
  sed -E "s#(\"library_path\": *\")[^\"]*/?(libvulkan_lvp\.so\")#\1$libraries/\2#" "$description" > "$cache/lavapipe.json"
  # Starting node through the loader would break process.execPath and with it child processes: patch a copy.
  if [ ! -x "$cache/bin/node" ] || [ "$(cat "$cache/node-version" 2>/dev/null)" != "$node $(node --version)" ]; then
    mkdir -p "$cache/bin"
    cp "$node" "$cache/bin/node.new"
    # Two calls: patchelf 0.18 doing both in one leaves a file that crashes.
    local patchelf=("$loader" --library-path "$libraries" "$root/usr/bin/patchelf")
    "${patchelf[@]}" --force-rpath --set-rpath "$libraries:/usr/lib/$triplet" "$cache/bin/node.new"
    "${patchelf[@]}" --set-interpreter "$loader" "$cache/bin/node.new"
    "$cache/bin/node.new" --version > /dev/null || fail "the patched copy of $node does not start"
    mv "$cache/bin/node.new" "$cache/bin/node"
    echo "$node $(node --version)" > "$cache/node-version"
  fi
  flock -u 9
  exec 9>&-
}

case $(command -v node) in
  "$cache"/bin/*) fail "already inside: node is $(command -v node)" ;;
esac
set_up
mkdir -p "$cache/run" "$cache/shaders"
if [ $# -gt 0 ]; then
  export PATH="$cache/bin:$PATH" VK_ICD_FILENAMES="$cache/lavapipe.json" VK_DRIVER_FILES="$cache/lavapipe.json"
  export XDG_RUNTIME_DIR="$cache/run" MESA_SHADER_CACHE_DIR="$cache/shaders"
  exec "$@"
fi
cat << EXPORTS
export PATH='$cache/bin':"\$PATH" VK_ICD_FILENAMES='$cache/lavapipe.json' VK_DRIVER_FILES='$cache/lavapipe.json'
export XDG_RUNTIME_DIR='$cache/run' MESA_SHADER_CACHE_DIR='$cache/shaders'
EXPORTS
