#!/bin/sh
# Stands in front of runc in lab nodes. Where the machine gives a node no cpu, memory or pids controller, runc
# fails on a container that asks for a limit; drop those limits and go on. Changes nothing where they exist.
bundle=
previous=
for arg in "$@"; do
  case $previous in --bundle | -b) bundle=$arg ;; esac
  case $arg in --bundle=*) bundle=${arg#*=} ;; esac
  previous=$arg
done
config=$bundle/config.json
if [ -n "$bundle" ] && [ -f "$config" ]; then
  have=" $(cat /sys/fs/cgroup/cgroup.controllers 2>/dev/null) "
  filter=.
  for controller in cpu memory pids; do
    case $have in *" $controller "*) ;; *)
        # kubelet asks for memory.oom.group among the unified ones.
        filter="$filter | del(.linux.resources.$controller)
          | (.linux.resources.unified // empty) |= with_entries(select(.key | startswith(\"$controller.\") | not))" ;;
    esac
  done
  # Lower oom_score_adj and higher rlimits take CAP_SYS_RESOURCE, bit 24 of the bounding set.
  if ! grep -q '^CapBnd:.*[13579bdf]......$' /proc/self/status; then
    filter="$filter | del(.process.oomScoreAdj) | del(.process.rlimits)"
  fi
  jq "$filter" "$config" >"$config.lab" && mv "$config.lab" "$config"
fi
exec /usr/sbin/runc.real "$@"
