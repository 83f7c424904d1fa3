package workspace

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/banger-dev/banger/internal/errs"
)

// repo makes a git repository with every kind of change in its working tree.
func repo(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("GIT_CONFIG_GLOBAL", filepath.Join(t.TempDir(), "gitconfig"))
	t.Setenv("GIT_CONFIG_NOSYSTEM", "1")
	run(t, dir, "git", "init", "-q", "-b", "main")
	run(t, dir, "git", "config", "user.name", `O'Neil "the" Tester\`)
	run(t, dir, "git", "config", "user.email", "t@example.test")
	run(t, dir, "git", "remote", "add", "origin", "https://user:s3cret@example.test/x.git")
	write(t, dir, "kept.txt", "kept\n", 0o644)
	write(t, dir, "changed.txt", "old\n", 0o644)
	write(t, dir, "gone.txt", "gone\n", 0o644)
	write(t, dir, "run.sh", "#!/bin/sh\n", 0o755)
	write(t, dir, "dir/deep name\n.txt", "odd\n", 0o600)
	write(t, dir, ".gitignore", "ignored\n*.o\n", 0o644)
	if err := os.Symlink("kept.txt", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/shadow", filepath.Join(dir, "outside")); err != nil {
		t.Fatal(err)
	}
	run(t, dir, "git", "add", "-A")
	run(t, dir, "git", "commit", "-qm", "first")
	write(t, dir, "changed.txt", "new\n", 0o644)
	write(t, dir, "untracked.txt", "untracked\n", 0o644)
	write(t, dir, "ignored", "ignored\n", 0o644)
	write(t, dir, "staged.txt", "staged\n", 0o644)
	run(t, dir, "git", "add", "staged.txt")
	if err := os.Remove(filepath.Join(dir, "gone.txt")); err != nil {
		t.Fatal(err)
	}
	return dir
}

func run(t *testing.T, dir string, argv ...string) string {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v\n%s", argv, err, out)
	}
	return string(out)
}

func write(t *testing.T, dir, name, text string, mode os.FileMode) {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// unpack takes a tar apart with the host's tar into a new directory.
func unpack(t *testing.T, tree *Tree) string {
	t.Helper()
	var b bytes.Buffer
	if _, err := tree.WriteTar(context.Background(), &b, nil); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cmd := exec.Command("tar", "-x", "--no-same-owner", "-C", dir)
	cmd.Stdin = &b
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	return dir
}

func inspect(t *testing.T, dir string) *Tree {
	t.Helper()
	tree, err := Inspect(context.Background(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func TestACopyOfARepositoryShowsWhatTheHostShows(t *testing.T) {
	dir := repo(t)
	tree := inspect(t, dir)
	copied := unpack(t, tree)
	for _, argv := range [][]string{
		{"git", "status", "--short"},
		{"git", "log", "--format=%H %an %s"},
		{"git", "diff"},
		{"git", "config", "user.name"},
		{"git", "fsck", "--strict"},
		{"git", "stash", "list"},
	} {
		if want, got := run(t, dir, argv...), run(t, copied, argv...); got != want {
			t.Errorf("%q: the copy says\n%s\nthe host says\n%s", argv, got, want)
		}
	}
	st, err := os.Stat(filepath.Join(copied, "run.sh"))
	if err != nil || st.Mode().Perm() != 0o755 {
		t.Errorf("run.sh: %v, %v", st, err)
	}
	if to, err := os.Readlink(filepath.Join(copied, "link")); err != nil || to != "kept.txt" {
		t.Errorf("link: %q, %v", to, err)
	}
	for _, gone := range []string{"ignored", "gone.txt", ".git/hooks"} {
		if _, err := os.Lstat(filepath.Join(copied, gone)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s was copied", gone)
		}
	}
	run(t, copied, "git", "commit", "-qam", "second")
	if tree.Branch != "main" || len(tree.Head) != 40 || !tree.Git {
		t.Errorf("%+v", tree)
	}
}

func TestNoSecretOfTheConfigGoesAlong(t *testing.T) {
	dir := repo(t)
	run(t, dir, "git", "config", "http.extraheader", "Authorization: s3cret")
	copied := unpack(t, inspect(t, dir))
	if got := strings.TrimSpace(run(t, copied, "git", "remote", "get-url", "origin")); got != "https://example.test/x.git" {
		t.Errorf("remote is %q", got)
	}
	if out, _ := exec.Command("grep", "-r", "s3cret", copied).Output(); len(out) != 0 {
		t.Errorf("a secret went along: %s", out)
	}
}

func TestALinkThatLeadsOutIsCopiedAsALinkAndNamed(t *testing.T) {
	tree := inspect(t, repo(t))
	if len(tree.Warnings) != 1 || !strings.Contains(tree.Warnings[0], "outside points outside") {
		t.Errorf("%q", tree.Warnings)
	}
	copied := unpack(t, tree)
	if to, err := os.Readlink(filepath.Join(copied, "outside")); err != nil || to != "/etc/shadow" {
		t.Errorf("%q, %v", to, err)
	}
}

func TestNoCodeOfTheRepositoryRuns(t *testing.T) {
	dir := repo(t)
	canary := filepath.Join(t.TempDir(), "canary")
	script := filepath.Join(dir, ".git", "evil")
	write(t, dir, ".git/evil", "#!/bin/sh\ntouch "+canary+"\n", 0o755)
	run(t, dir, "git", "config", "core.fsmonitor", script)
	run(t, dir, "git", "config", "core.pager", script)
	run(t, dir, "git", "config", "filter.evil.clean", script)
	write(t, dir, ".gitattributes", "* filter=evil\n", 0o644)
	tree := inspect(t, dir)
	if _, err := tree.WriteTar(context.Background(), io.Discard, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(canary); err == nil {
		t.Fatal("code of the repository ran")
	}
}

func TestALinkedWorktreeAndAnAlternateStandAlone(t *testing.T) {
	dir := repo(t)
	wt := filepath.Join(t.TempDir(), "wt")
	run(t, dir, "git", "worktree", "add", "-q", "-b", "side", wt)
	copied := unpack(t, inspect(t, wt))
	if got := run(t, copied, "git", "log", "--format=%s"); got != "first\n" {
		t.Errorf("log: %q", got)
	}
	if got := run(t, copied, "git", "branch", "--show-current"); got != "side\n" {
		t.Errorf("branch: %q", got)
	}
	shared := filepath.Join(t.TempDir(), "shared")
	run(t, dir, "git", "clone", "-q", "--shared", dir, shared)
	copied = unpack(t, inspect(t, shared))
	run(t, copied, "git", "fsck", "--strict")
	if _, err := os.Stat(filepath.Join(copied, ".git/objects/info/alternates")); err == nil {
		t.Error("the copy points at the host's objects")
	}
}

func TestASubdirectoryMeansTheWholeRepository(t *testing.T) {
	dir := repo(t)
	tree := inspect(t, filepath.Join(dir, "dir"))
	if tree.Sub != "dir" || filepath.Base(tree.Root) != filepath.Base(dir) {
		t.Errorf("%q %q", tree.Root, tree.Sub)
	}
}

func TestAnEmptyRepositoryAndAPlainDirectory(t *testing.T) {
	t.Setenv("GIT_CONFIG_GLOBAL", "/dev/null")
	dir := t.TempDir()
	run(t, dir, "git", "init", "-q")
	copied := unpack(t, inspect(t, dir))
	run(t, copied, "git", "status")
	plain := t.TempDir()
	write(t, plain, "a/b.txt", "b", 0o640)
	if err := os.Mkdir(filepath.Join(plain, "empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	tree := inspect(t, plain)
	copied = unpack(t, tree)
	if _, err := os.Stat(filepath.Join(copied, "empty")); err != nil || tree.Git {
		t.Errorf("%v, git %v", err, tree.Git)
	}
}

func TestBadPaths(t *testing.T) {
	_, err := Inspect(context.Background(), filepath.Join(t.TempDir(), "none"))
	if errs.CodeOf(err) != "workspace_not_found" || errs.HintOf(err) == "" {
		t.Error(err)
	}
	f := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(f, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Inspect(context.Background(), f); errs.CodeOf(err) != "workspace_not_directory" {
		t.Error(err)
	}
	broken := t.TempDir()
	write(t, broken, ".git", "gitdir: /nowhere\n", 0o644)
	if _, err := Inspect(context.Background(), broken); errs.CodeOf(err) != "workspace_git_refused" {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	tree := inspect(t, repo(t))
	cancel()
	if _, err := tree.WriteTar(ctx, io.Discard, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestSetuidAndOwnersStayBehind(t *testing.T) {
	plain := t.TempDir()
	write(t, plain, "su", "x", 0o755)
	if err := os.Chmod(filepath.Join(plain, "su"), 0o4755); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if _, err := inspect(t, plain).WriteTar(context.Background(), &b, nil); err != nil {
		t.Fatal(err)
	}
	r := tar.NewReader(&b)
	h, err := r.Next()
	if err != nil || h.Mode != 0o755 || h.Uname != "" || h.Uid != 0 {
		t.Errorf("%+v, %v", h, err)
	}
}

func FuzzQuoteConfig(f *testing.F) {
	f.Add("a\"b\\c\nd")
	f.Add("# x ; y")
	f.Fuzz(func(t *testing.T, s string) {
		if q := quoteConfig(s); strings.Contains(q, "\n") || strings.Contains(q, "\x00") {
			t.Fatalf("%q", q)
		}
	})
}
