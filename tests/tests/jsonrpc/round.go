// Calls a node's JSON-RPC over TCP as any client of net/rpc/jsonrpc does. Argument: the node's address.
// Without an error it prints the names of the members.
package main

import (
	"fmt"
	"net/rpc"
	"net/rpc/jsonrpc"
	"os"
	"strings"
)

type None struct{}

type Name struct{ Name string }

type Registration struct {
	Name, ID string
	Port     int
	Tags     []string
}

type Instance struct {
	ID   string
	Node string
	Port int
}

type Services struct {
	Index    uint64
	Services map[string][]Instance
}

type Members struct {
	Members []struct{ Name, State string }
}

type Student struct {
	ID                  uint64
	FirstName, LastName string
	Grades              []struct{ Score float64 }
}

type NewStudent struct {
	FirstName string `json:"firstName"`
	LastName  string `json:"lastName"`
}

type Grade struct {
	Student uint64  `json:"student"`
	Title   string  `json:"title"`
	Type    string  `json:"type"`
	Score   float64 `json:"score"`
}

type ID struct {
	ID any `json:"id"`
}

type Record struct {
	Message string `json:"message"`
	Service string `json:"service"`
}

var client *rpc.Client

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func expect(is bool, what string, got any) {
	if !is {
		fmt.Fprintf(os.Stderr, "%s: %+v\n", what, got)
		os.Exit(1)
	}
}

// The node answers a call before it reads the next one, so replies are in order; the client matches them by id.
func pipeline() {
	calls := make([]*rpc.Call, 50)
	replies := make([]Members, len(calls))
	for i := range calls {
		calls[i] = client.Go("Members.List", None{}, &replies[i], nil)
	}
	for i, call := range calls {
		must((<-call.Done).Error)
		expect(len(replies[i].Members) == 2, "members", replies[i])
	}
}

func students() {
	var added, seen Student
	must(client.Call("Students.Add", NewStudent{"Ada", "Lovelace"}, &added))
	var graded struct{ ID uint64 }
	must(client.Call("Students.AddGrade", Grade{added.ID, "Notes", "Exam", 97}, &graded))
	must(client.Call("Students.Get", ID{added.ID}, &seen))
	expect(seen.LastName == "Lovelace" && len(seen.Grades) == 1 && seen.Grades[0].Score == 97, "student", seen)
	var nothing struct{}
	must(client.Call("Students.Remove", ID{added.ID}, &nothing))
	err := client.Call("Students.Get", ID{added.ID}, &seen)
	expect(err != nil && strings.HasSuffix(err.Error(), "(-32004)"), "a removed student", err)
}

func main() {
	var err error
	client, err = jsonrpc.Dial("tcp", os.Args[1])
	must(err)
	var registered struct{ ID string }
	must(client.Call("Services.Register", Registration{"web", "web-1", 8080, []string{"go"}}, &registered))
	expect(registered.ID == "web-1", "registered", registered)
	var services Services
	must(client.Call("Services.List", struct{ Tag string }{"go"}, &services))
	web := services.Services["web"]
	expect(len(web) == 1 && web[0].Port == 8080 && web[0].ID == "web-1", "services", services)
	// A scalar is a parameter by position.
	services = Services{}
	must(client.Call("Services.Get", "web", &services))
	expect(len(services.Services["web"]) == 1, "web", services)
	err = client.Call("Services.Get", Name{"none"}, &services)
	expect(err != nil && strings.Contains(err.Error(), `"none"`), "an error is a text", err)
	err = client.Call("Services.None", None{}, &services)
	expect(err != nil && strings.Contains(err.Error(), "there is no method"), "unknown method", err)
	var why map[string]any
	must(client.Call("Why", "web", &why))
	expect(len(why) > 0, "why", why)
	students()
	var appended struct{ ID, Ack string }
	must(client.Call("Log.Append", Record{"from go", "web"}, &appended))
	expect(appended.ID != "", "appended", appended)
	var nothing map[string]any
	must(client.Call("Services.Deregister", ID{"web-1"}, &nothing))
	err = client.Call("Services.Get", "web", &services)
	expect(err != nil, "a deregistered service", services)
	pipeline()
	var members Members
	must(client.Call("Members.List", None{}, &members))
	for _, member := range members.Members {
		fmt.Println(member.Name, member.State)
	}
	must(client.Close())
}
