# Runs `homelab-node serve`: the installed one, or a temporary copy of what the laptop sends.
# The laptop puts lib, dirs, skip, forced and digest() in front. For dash, bash and busybox.
set -u
umask 077
arch=$(uname -m) || exit 1
want=$(digest "$arch")
if [ -n "$want" ] && [ "$forced" = 0 ] && [ -x "$lib/$want/homelab-node" ]; then
  printf '\nhomelab-serve %s installed\n' "$arch"
  exec "$lib/$want/homelab-node" serve
fi
# The laptop's first messages are on their way already, for a binary that is not here.
[ "$skip" = 0 ] || head -c "$skip" >/dev/null
printf '\nhomelab-need %s\n' "$arch"
read -r sum size || exit 3
[ -n "$sum" ] || exit 3
tmp=
trap '[ -z "$tmp" ] || rm -rf "$tmp"' EXIT
trap 'exit 5' HUP INT TERM
for dir in $dirs; do
  tmp=$(mktemp -d "$dir/homelab.XXXXXX" 2>/dev/null) || { tmp=; continue; }
  # A directory may be mounted noexec, as /run is on Debian.
  printf '#!/bin/sh\n' >"$tmp/probe" && chmod 700 "$tmp/probe"
  "$tmp/probe" 2>/dev/null && break
  rm -rf "$tmp"
  tmp=
done
if [ -z "$tmp" ]; then
  echo "none of $dirs can hold a program" >&2
  exit 4
fi
head -c "$size" | gzip -dc >"$tmp/homelab-node" || { echo "unpacking in $tmp failed" >&2; exit 6; }
got=$(sha256sum "$tmp/homelab-node")
if [ "${got%% *}" != "$sum" ]; then
  echo "the node binary arrived damaged" >&2
  exit 7
fi
rm -f "$tmp/probe"
chmod 700 "$tmp/homelab-node"
printf '\nhomelab-serve %s temporary\n' "$arch"
exec "$tmp/homelab-node" serve --temporary "$tmp"
