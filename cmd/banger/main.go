// Command banger is the command line: it gives a Linux machine of one's own,
// a microVM, in one command. See internal/cli.
package main

import (
	"context"
	"os"

	"github.com/banger-dev/banger/internal/cli"
)

func main() {
	dir, err := os.Getwd()
	if err != nil {
		dir = "/"
	}
	self, err := os.Executable()
	if err != nil {
		self = ""
	}
	os.Exit(cli.Main(context.Background(), cli.Process{
		Args: os.Args[1:], In: os.Stdin, Out: os.Stdout, Err: os.Stderr,
		Getenv: os.Getenv, Dir: dir, Self: self, UID: os.Getuid(),
	}))
}
