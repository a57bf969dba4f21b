#!/bin/bash
# Makes the namespace and the secrets that the manifests name, as far as they are missing: nothing is replaced.
# Needs kubectl (with the cluster as its context) and openssl.
set -euo pipefail

if (($# != 3)); then
    echo 'usage: create-secrets.sh TOKENS.toml CERTIFICATE.pem KEY.pem' >&2
    echo '  TOKENS.toml: metasearch token create --tokens TOKENS.toml --tenant NAME --role admin' >&2
    echo '  CERTIFICATE.pem, KEY.pem: what gateways show to clients, for the name that these connect to' >&2
    exit 2
fi
tokens=$1 certificate=$2 key=$3
folder=$(dirname "$0")

missing() {
    [[ -z $(kubectl get secret "$1" --namespace metasearch --ignore-not-found --output name) ]]
}

# A random value under a key. From standard input, as command lines can be read by others.
random() {
    kubectl create --namespace metasearch --filename - <<YAML
apiVersion: v1
kind: Secret
metadata:
  name: $1
stringData:
  $2: $(openssl rand -hex 32)
YAML
}

kubectl apply --filename "$folder/base/namespace.yaml"
if missing metasearch-redis; then random metasearch-redis password; fi
if missing metasearch-ray-token; then random metasearch-ray-token auth_token; fi
if missing metasearch-tokens; then
    kubectl create secret generic metasearch-tokens --namespace metasearch --from-file=tokens.toml="$tokens"
fi
if missing metasearch-tls; then
    kubectl create secret tls metasearch-tls --namespace metasearch --cert="$certificate" --key="$key"
fi
