module github.com/graphload/graphload

go 1.26.8

ignore (
	./bin
	./build
	./client
	./cmd/buildkitd
	./frontend
	./session
	./solver
	./util
)

require (
	github.com/aymanbagabas/go-udiff v0.4.1
	github.com/pkg/errors v0.9.1
	github.com/urfave/cli/v3 v3.11.0
	go.yaml.in/yaml/v3 v3.0.6
	golang.org/x/mod v0.42.0
	golang.org/x/tools v0.52.0
)

require (
	github.com/moby/buildkit v0.34.2 // indirect
	github.com/stretchr/testify v1.12.1 // indirect
)
