package store_test

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/event"
	"github.com/banger-dev/banger/internal/store"
	"github.com/banger-dev/banger/internal/vm"
)

func open(t *testing.T, path string) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func record(id, name string) vm.Record {
	return vm.Record{ID: id, Name: name, Intent: vm.Stopped, Created: time.Now().UTC(), Spec: vm.Spec{CPUs: 2, Memory: 1 << 30}}
}

func TestRecordsSurviveTheDaemon(t *testing.T) {
	path := filepath.Join(t.TempDir(), "odd ?%#name.db")
	s := open(t, path)
	a, b := record("a", "web"), record("b", "db")
	b.Created = a.Created.Add(time.Second)
	for _, r := range []vm.Record{b, a} {
		if err := s.PutVM(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	a.Name = "web2"
	if err := s.PutVM(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	s.Close()
	got, err := open(t, path).ListVMs(t.Context())
	if err != nil || len(got) != 2 || got[0].Name != "web2" || got[1].Name != "db" || got[0].Spec.CPUs != 2 {
		t.Fatalf("%+v %v", got, err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v %v", fi, err)
	}
}

func TestATakenNameIsAConflict(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "db"))
	if err := s.PutVM(t.Context(), record("a", "web")); err != nil {
		t.Fatal(err)
	}
	if err := s.PutVM(t.Context(), record("b", "web")); errs.CodeOf(err) != "vm_name_taken" {
		t.Fatalf("got %v", err)
	}
	if err := s.DeleteVM(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if err := s.PutVM(t.Context(), record("b", "web")); err != nil {
		t.Fatal(err)
	}
}

// Lesson 10: settings belong to every connection of the pool.
func TestEveryConnectionHasTheSettings(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "db"))
	for range 4 {
		conn, err := s.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1", "busy_timeout": "5000"} {
			var got string
			if err := conn.QueryRowContext(t.Context(), "PRAGMA "+pragma).Scan(&got); err != nil || got != want {
				t.Fatalf("%s = %q, want %q (%v)", pragma, got, want, err)
			}
		}
	}
}

func TestANewerSchemaIsRefusedWithWords(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	open(t, path).Close()
	raw(t, path, "PRAGMA user_version = 99")
	before, _ := os.ReadFile(path)
	_, err := store.Open(t.Context(), path)
	if errs.CodeOf(err) != "store_newer" || !strings.Contains(err.Error(), "newer banger") || errs.HintOf(err) == "" {
		t.Fatalf("got %v", err)
	}
	after, _ := os.ReadFile(path)
	if string(before) != string(after) {
		t.Fatal("the refused database was changed")
	}
}

func TestADamagedDatabaseSaysHowToGoOn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	if err := os.WriteFile(path, []byte(strings.Repeat("not a database ", 500)), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := store.Open(t.Context(), path)
	if errs.CodeOf(err) != "store_damaged" || !strings.Contains(errs.HintOf(err), "--rebuild") {
		t.Fatalf("got %v", err)
	}
	aside, err := store.Rebuild(path, time.Now())
	if err != nil || aside == "" {
		t.Fatal(err)
	}
	open(t, path)
	if _, err := os.Stat(aside); err != nil {
		t.Fatal("the damaged database was not kept")
	}
}

func TestAMigrationIsPrecededByABackup(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := open(t, path)
	if err := s.PutVM(t.Context(), record("a", "web")); err != nil {
		t.Fatal(err)
	}
	if err := s.MigrateTo(t.Context(), "CREATE TABLE later (x INTEGER) STRICT"); err != nil {
		t.Fatal(err)
	}
	matches, _ := filepath.Glob(path + ".v*.bak")
	if len(matches) != 1 {
		t.Fatalf("backups: %v", matches)
	}
	if got, err := open(t, matches[0]).ListVMs(t.Context()); err != nil || len(got) != 1 {
		t.Fatalf("%v %v", got, err)
	}
}

func TestAFailedMigrationLeavesTheOldSchema(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := open(t, path)
	if err := s.MigrateTo(t.Context(), "CREATE TABLE later (x INTEGER); SELECT no_such_function()"); err == nil {
		t.Fatal("no error")
	}
	s.Close()
	open(t, path)
}

func TestEventsAreReadOnWithoutLossOrRepeat(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "db"))
	const n = 600
	for range n {
		if _, err := s.AppendEvent(t.Context(), event.Event{At: time.Now(), Kind: "x", Data: map[string]string{"k": "v"}}); err != nil {
			t.Fatal(err)
		}
	}
	var after uint64
	for seen := 0; seen < n; {
		got, err := s.EventsAfter(t.Context(), after, 100)
		if err != nil || len(got) == 0 {
			t.Fatalf("at %d: %v", seen, err)
		}
		for _, e := range got {
			if e.Cursor != after+1 || e.Data["k"] != "v" {
				t.Fatalf("after %d came %+v", after, e)
			}
			after = e.Cursor
			seen++
		}
	}
	if last, err := s.LastEvent(t.Context()); err != nil || last != n {
		t.Fatalf("last %d %v", last, err)
	}
}

func TestCancelledCallsFail(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "db"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.PutVM(ctx, record("a", "a")); err == nil || !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
}

func raw(t *testing.T, path, stmt string) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(stmt); err != nil {
		t.Fatal(err)
	}
}
