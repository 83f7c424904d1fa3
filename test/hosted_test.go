package test

import (
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestStories(t *testing.T) {
	testscript.Run(t, story("script", "hypervisor = \"hosted\"\n"))
}
