#!/bin/sh
# Installs the node that it runs on, from a pod of the image (node.yaml): the host's / is at /host, its settings are at
# /settings/node.env, NATS_URL is in the environment.
set -eu

checkout=/opt/kindling/.from-image
rm -rf "/host$checkout"
mkdir -p "/host$checkout" /host/etc/kindling
trap 'rm -rf "/host$checkout"' EXIT
cp -R /opt/kindling/. "/host$checkout"

env=/host/etc/kindling/node.env
# Secret from the first byte.
(
  umask 077
  {
    cat /settings/node.env
    echo "NATS_URL=$NATS_URL"
  } >"$env.new"
)
if cmp -s "$env.new" "$env"; then
  rm "$env.new"
else
  mv "$env.new" "$env"
  echo "install: wrote /etc/kindling/node.env; it is read when the unit starts: systemctl restart kindling"
fi

# In the host's namespaces, as if started there.
nsenter --target 1 --mount --uts --ipc --net -- sh "$checkout/infra/install-node.sh" --restart-containerd
